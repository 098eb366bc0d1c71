"""From verdicts to advantages: what each sampled completion is to be learned with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlvr.algo import lengths
from rlvr.algo.advantages import ADVANTAGES, SPREAD_TOLERANCE, Groups, whiten
from rlvr.algo.distill import DistillConfig
from rlvr.algo.kl import LOG_RATIO_LIMIT
from rlvr.algo.lengths import LengthConfig
from rlvr.algo.rewards import RewardConfig, compute_rewards, is_accused, part_rewards
from rlvr.algo.value import ValueConfig, estimate_advantages
from rlvr.config import ExperimentConfig
from rlvr.learner.batch import Row
from rlvr.rollout.collect import Episode
from rlvr.types import Verdict
from rlvr.verifiers.repetition import measure_repetition


class Credit(NamedTuple):
    """Per episode, all [P * G].

    Attributes:
        rewards: with what length and a KL penalty change, if they are in the reward.
        valid: whether the sample counts at all (`RewardConfig`).
        advantages: the mean over the sample's tokens; zero where not valid.
        kept: whether the sample is learned from, [P * G].
        right: whether it is an example to imitate, [P * G].
        tokens: the advantage of each token of each sample, [C]; None where all tokens of a sample have the same.
        values, returns: the critic's value before each token of each sample, [C], and what it is to become; or None.
    """

    rewards: np.ndarray
    valid: np.ndarray
    advantages: np.ndarray
    kept: np.ndarray
    right: np.ndarray
    tokens: list[np.ndarray] | None = None
    values: list[np.ndarray] | None = None
    returns: list[np.ndarray] | None = None

    def attach(self, rows: Sequence[Row]) -> list[Row]:
        """Returns the rows with what they are to be learned with."""
        each = self.tokens if self.tokens is not None else [float(a) for a in self.advantages]
        # Without a weight neither a KL nor an entropy bonus learns from it.
        rows = [
            row._replace(advantage=a, right=bool(right), weight=row.weight * float(kept))
            for row, a, right, kept in zip(rows, each, self.right, self.kept, strict=True)
        ]
        if self.values is None or self.returns is None:
            return rows
        given = zip(rows, self.values, self.returns, self.kept, strict=True)
        return [row._replace(values=v, returns=r, value_weight=float(kept)) for row, v, r, kept in given]

    def metrics(self) -> dict[str, float]:
        """Returns what is told of the values, over the tokens of the samples that are learned from.

        The explained variance is 1 - var(return - value) / var(return); there is none where all returns are the same.
        """
        if self.values is None or self.returns is None or not self.kept.any():
            return {}
        values, returns = (
            np.concatenate([x for x, kept in zip(each, self.kept, strict=True) if kept])
            for each in (self.values, self.returns)
        )
        out = {"value/mean": float(np.mean(values)), "value/returns": float(np.mean(returns))}
        if (spread := float(np.var(returns))) > SPREAD_TOLERANCE**2:
            out["value/explained_variance"] = 1.0 - float(np.var(returns - values)) / spread
        return out


def make_rows(episodes: Sequence[Episode], group_size: int) -> list[Row]:
    """Returns the episodes as rows for the learner, without advantages yet."""
    return [
        Row(
            c.request.prompt,
            c.tokens,
            c.logprobs,
            0.0,
            i // group_size,
            c.choices,
            support=c.support,
            truncated=c.stop_reason == "length",
        )
        for i, c in enumerate(episode.completion for episode in episodes)
    ]


def assign_credit(
    config: ExperimentConfig,
    episodes: Sequence[Episode],
    rows: Sequence[Row],
    reference: Sequence[np.ndarray] | None,
    kl_coef: float | None = None,
    values: Sequence[np.ndarray] | None = None,
    taught: Sequence[np.ndarray] | None = None,
) -> Credit:
    """Compares the episodes of each group, or (advantage "gae") their tokens with what the critic expected.

    Args:
        reference: log-probs of each row's completion under the reference; needed for "k1_in_reward", where the
            scalar reward loses kl_coef * sum_t (log policy - log reference), both as sampled, and for "k1_to_go",
            where the advantage of token t loses the same sum from t on: with "gae", each token's reward its own part.
        kl_coef: by default the objective's.
        values: of `Learner.values`; needed for "gae".
        taught: a teacher's log-probs of each row's completion (`rlvr.algo.distill`), if they are wanted.

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
    kept = valid & ~is_dropped(config.reward.length, episodes)
    credit = Credit(rewards, valid, np.zeros(len(rows)), kept, kept & is_right(config.reward, verdicts))
    if objective.needs_values():
        assert values is not None
        credit = _appraise(objective.value, credit, rows, drift if objective.kl == "k1_to_go" else [], values)
        return _finish(objective.whiten, credit, count_tokens(episodes))
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
    credit = _finish(objective.whiten, credit._replace(advantages=advantages, tokens=tokens), count_tokens(episodes))
    return teach(config.distill, credit, rows, taught)


def teach(config: DistillConfig, credit: Credit, rows: Sequence[Row], taught: Sequence[np.ndarray] | None) -> Credit:
    """Returns the credit with the teacher's: reward * A + coef * (log teacher - log student), the latter as sampled.

    A number, not a function of the parameters: differentiated, log student - log teacher has the expectation zero. It
    is that of every sample, also of those without a verdict.
    """
    if taught is None:
        if config.reward == 1.0:
            return credit
        tokens = None if credit.tokens is None else [config.reward * each for each in credit.tokens]
        return credit._replace(advantages=config.reward * credit.advantages, tokens=tokens)
    before = credit.advantages if credit.tokens is None else credit.tokens
    lead = [np.subtract(t, row.old_logprobs, dtype=np.float64) for t, row in zip(taught, rows, strict=True)]
    bounded = [np.clip(x, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT) for x in lead]
    tokens = [config.reward * a + config.coef * x for a, x in zip(before, bounded, strict=True)]
    return credit._replace(advantages=np.array([each.mean() for each in tokens]), tokens=tokens)


def _appraise(
    config: ValueConfig,
    credit: Credit,
    rows: Sequence[Row],
    drift: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
) -> Credit:
    """Returns the credit with the advantages and the returns of tokens; the reward is the last token's."""
    tokens, returns = [], []
    for i, row in enumerate(rows):
        count = len(row.completion)
        earned = -drift[i] if drift else np.zeros(count)
        own, rest = np.asarray(values[i][:count], np.float64), values[i][count:]
        if count and not len(rest):  # the rest is the value at which a sample was cut off
            earned[-1] += credit.rewards[i]
        after = float(rest[0]) if len(rest) else 0.0
        tokens.append(estimate_advantages(earned, own, config.gamma, config.policy_lam(count), after))
        returns.append(estimate_advantages(earned, own, config.gamma, config.lam_returns, after) + own)
    before = [v[: len(r)] for v, r in zip(values, returns, strict=True)]
    return credit._replace(tokens=tokens, values=before, returns=returns)


def _finish(over: str, credit: Credit, counts: np.ndarray) -> Credit:
    """Whitens the advantages, and takes those of the samples that are not learned from.

    Args:
        counts: tokens of each sample.
    """
    advantages, tokens, valid = credit.advantages, credit.tokens, credit.valid
    if tokens is None:
        if over != "none":
            advantages = whiten(advantages, valid * (counts if over == "tokens" else 1))
        return credit._replace(advantages=np.where(credit.kept, advantages, 0.0))
    if over != "none":
        shares = np.repeat(valid / (1 if over == "tokens" else np.maximum(counts, 1)), counts)
        tokens = np.split(whiten(np.concatenate(tokens), shares), np.cumsum(counts)[:-1])
    tokens = [each * keep for each, keep in zip(tokens, credit.kept, strict=True)]
    return credit._replace(advantages=np.array([each.mean() if len(each) else 0.0 for each in tokens]), tokens=tokens)


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


def is_right(config: RewardConfig, verdicts: Sequence[Verdict]) -> np.ndarray:
    """Returns which samples are examples to imitate: those that are correct, and not penalised for hacking."""
    return np.array([v.status == "correct" and not (config.audit_penalty and is_accused(v)) for v in verdicts], bool)


def is_dropped(config: LengthConfig, episodes: Sequence[Episode]) -> np.ndarray:
    """Returns which episodes are compared with the others, but not learned from: [P * G] bool."""
    return np.array([config.drop_truncated and e.completion.stop_reason == "length" for e in episodes], bool)
