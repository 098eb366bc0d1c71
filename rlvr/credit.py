"""From verdicts to advantages: what each sampled completion is to be learned with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlvr.algo.advantages import ADVANTAGES
from rlvr.algo.rewards import compute_rewards
from rlvr.config import ExperimentConfig
from rlvr.learner.batch import Row
from rlvr.rollout.collect import Episode


class Credit(NamedTuple):
    """Per episode, all [P * G].

    Attributes:
        rewards: after a KL penalty, if that is in the reward.
        valid: whether the sample counts at all (`RewardConfig`).
        advantages: zero where not valid.
    """

    rewards: np.ndarray
    valid: np.ndarray
    advantages: np.ndarray


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
) -> Credit:
    """Compares the episodes of each group.

    Args:
        reference: log-probs of each row's completion under the start policy; needed for "k1_in_reward", where the
            scalar reward loses kl_coef * sum_t (log policy - log reference), both as sampled.
    """
    objective = config.objective
    rewards, valid = compute_rewards([e.verdict for e in episodes], config.reward)
    if objective.kl == "k1_in_reward":
        assert reference is not None
        drift = [np.sum(row.old_logprobs - ref) for row, ref in zip(rows, reference, strict=True)]
        rewards = rewards - objective.kl_coef * np.array(drift, np.float64)
    groups = (-1, config.rollout.group_size)
    advantages = ADVANTAGES[objective.advantage](
        rewards.reshape(groups), valid.reshape(groups), std_ddof=objective.std_ddof, epsilon=objective.epsilon
    )
    return Credit(rewards, valid, advantages.reshape(-1))
