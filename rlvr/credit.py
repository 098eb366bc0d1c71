"""From verdicts to advantages: what each sampled completion is to be learned with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlvr.algo import lengths
from rlvr.algo.advantages import ADVANTAGES, Groups, whiten
from rlvr.algo.lengths import LengthConfig
from rlvr.algo.rewards import compute_rewards, is_accused, part_rewards
from rlvr.config import ExperimentConfig
from rlvr.learner.batch import Row
from rlvr.rollout.collect import Episode
from rlvr.verifiers.repetition import measure_repetition


class Credit(NamedTuple):
    """Per episode, all [P * G].

    Attributes:
        rewards: with what length and a KL penalty change, if they are in the reward.
        valid: whether the sample counts at all (`RewardConfig`).
        advantages: the mean over the sample's tokens; zero where not valid.
        tokens: the advantage of each token of each sample, [C]; None where all tokens of a sample have the same.
    """

    rewards: np.ndarray
    valid: np.ndarray
    advantages: np.ndarray
    tokens: list[np.ndarray] | None = None

    def attach(self, rows: Sequence[Row]) -> list[Row]:
        """Returns the rows with their advantages."""
        each = self.tokens if self.tokens is not None else [float(a) for a in self.advantages]
        return [row._replace(advantage=a) for row, a in zip(rows, each, strict=True)]


def make_rows(episodes: Sequence[Episode], group_size: int) -> list[Row]:
    """Returns the episodes as rows for the learner, without advantages yet."""
    return [
        Row(c.request.prompt, c.tokens, c.logprobs, 0.0, i // group_size, c.choices, support=c.support)
        for i, c in enumerate(episode.completion for episode in episodes)
    ]


def assign_credit(
    config: ExperimentConfig,
    episodes: Sequence[Episode],
    rows: Sequence[Row],
    reference: Sequence[np.ndarray] | None,
    kl_coef: float | None = None,
) -> Credit:
    """Compares the episodes of each group.

    Args:
        reference: log-probs of each row's completion under the reference; needed for "k1_in_reward", where the
            scalar reward loses kl_coef * sum_t (log policy - log reference), both as sampled, and for "k1_to_go",
            where the advantage of token t loses the same sum from t on.
        kl_coef: by default the objective's.

    Raises:
        DataError: rewards that the advantage is not for, or a verdict without a part that is a reward.
    """
    objective, grid = config.objective, (-1, config.rollout.group_size)
    verdicts = [e.verdict for e in episodes]
    rewards, valid = compute_rewards(verdicts, config.reward)
    rewards = shape_rewards(config, episodes, rewards, valid)
    drift: list[np.ndarray] = []
    if objective.kl in ("k1_in_reward", "k1_to_go"):
        assert reference is not None
        pairs = zip(rows, reference, strict=True)
        coef = objective.kl_coef if kl_coef is None else kl_coef
        drift = [coef * np.subtract(row.old_logprobs, r, dtype=np.float64) for row, r in pairs]
    if objective.kl == "k1_in_reward":
        rewards = rewards - np.array([np.sum(each) for each in drift], np.float64)
    parts = part_rewards(verdicts, config.reward) if objective.advantage == "gdpo" else None
    groups = Groups(
        rewards.reshape(grid),
        valid.reshape(grid),
        count_tokens(episodes).reshape(grid),
        None if parts is None else parts.reshape(len(parts), *grid),
        config.reward.part_weights,
    )
    advantages = ADVANTAGES[objective.advantage](groups, objective).reshape(-1)
    tokens = None
    if objective.kl == "k1_to_go":
        tokens = [
            (a - np.cumsum(each[::-1])[::-1]) * counts for a, each, counts in zip(advantages, drift, valid, strict=True)
        ]
    kept = valid & ~is_dropped(config.reward.length, episodes)
    return _finish(objective.whiten, rewards, valid, kept, advantages, tokens, count_tokens(episodes))


def _finish(
    over: str,
    rewards: np.ndarray,
    valid: np.ndarray,
    kept: np.ndarray,
    advantages: np.ndarray,
    tokens: list[np.ndarray] | None,
    counts: np.ndarray,
) -> Credit:
    """Whitens the advantages, and takes those of the samples that are not learned from."""
    if tokens is None:
        if over != "none":
            advantages = whiten(advantages, valid * (counts if over == "tokens" else 1))
        return Credit(rewards, valid, np.where(kept, advantages, 0.0))
    if over != "none":
        shares = np.repeat(valid / (1 if over == "tokens" else np.maximum(counts, 1)), counts)
        tokens = np.split(whiten(np.concatenate(tokens), shares), np.cumsum(counts)[:-1])
    tokens = [each * keep for each, keep in zip(tokens, kept, strict=True)]
    return Credit(rewards, valid, np.array([each.mean() if len(each) else 0.0 for each in tokens]), tokens)


def shape_rewards(
    config: ExperimentConfig, episodes: Sequence[Episode], rewards: np.ndarray, valid: np.ndarray
) -> np.ndarray:
    """Returns the rewards [P * G] with what the samples' lengths change; those that are not valid stay.

    An accused sample (`RewardConfig.audit_penalty`) is not paid for its length.
    """
    own, budget = config.reward.length, config.engine.max_new_tokens
    counts, shaped = count_tokens(episodes), rewards
    if own.cosine:
        right = np.array([e.verdict.status == "correct" for e in episodes])
        shaped = lengths.shape_cosine(counts, right, budget, own)
        if config.reward.audit_penalty:
            accused = np.array([is_accused(e.verdict) for e in episodes])
            shaped = np.where(accused, rewards, shaped)
    if own.linear:
        grid = (-1, config.rollout.group_size)
        given = shaped.reshape(grid), counts.reshape(grid), valid.reshape(grid)
        shaped = lengths.penalise_linearly(*given, own.linear).reshape(-1)
    if own.overlong_buffer:
        shaped = shaped + own.overlong_weight * lengths.punish_overlong(counts, budget, own.overlong_buffer)
    if own.repetition:
        repeats = [measure_repetition(e.text.lower().split(), own.repetition_n) for e in episodes]
        shaped = shaped - own.repetition * np.array(repeats)
    return np.where(valid, shaped, rewards)


def count_tokens(episodes: Sequence[Episode]) -> np.ndarray:
    """Returns how many tokens were sampled for each episode."""
    return np.array([len(e.completion.tokens) for e in episodes])


def is_dropped(config: LengthConfig, episodes: Sequence[Episode]) -> np.ndarray:
    """Returns which episodes are compared with the others, but not learned from: [P * G] bool."""
    return np.array([config.drop_truncated and e.completion.stop_reason == "length" for e in episodes], bool)
