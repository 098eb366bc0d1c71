"""Multi-Task GRPO (2602.05547): weights of tasks by their improvement, and shares that dynamic sampling leaves alone.

    max over the policy, min over z of sum_k z_k J_k

The tasks' rewards J are accuracies: the loss of GRPO is about 0 for every task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOST_TRIES = 5.0  # prompts of a task sampled for each group that it is to have, at most
_B1, _B2, _EPSILON, _DECAY = 0.9, 0.999, 1e-8, 1e-5  # AdamW


def start(tasks: int) -> dict[str, Any]:
    """Returns the state of even weights, of JSON values; `rewards` are None before a task was seen."""
    zeros = {name: [0.0] * tasks for name in ("logits", "first", "second")}
    return {**zeros, "updates": 0, "rewards": [None] * tasks}


def update(
    state: Mapping[str, Any],
    rewards: np.ndarray,
    seen: np.ndarray,
    *,
    level: float,
    clip: float,
    learning_rate: float,
) -> dict[str, Any]:
    """Returns the state after a step: tasks of low score s = I + level J gain weight.

    I is the improvement J(now) - J(before), clipped to [-clip, clip]; the logits of z descend g = z (s - sum z s) with
    AdamW. A task that was not seen keeps its J, and has I = 0; one that never was
    has the mean score, and so no gradient.

    Args:
        rewards: [K] mean rewards of the step.
        seen: [K] bool, of which tasks there were any.
    """
    before = [now if old is None else old for old, now in zip(state["rewards"], rewards, strict=True)]
    current = np.where(seen, rewards, before)
    scores = np.clip(current - before, -clip, clip) + level * current
    logits = np.array(state["logits"])
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    known = seen | np.array([old is not None for old in state["rewards"]])
    if known.any():
        scores = np.where(known, scores, np.average(scores[known], weights=weights[known]))
    gradient = weights * (scores - weights @ scores)
    count = state["updates"] + 1
    first = _B1 * np.array(state["first"]) + (1 - _B1) * gradient
    second = _B2 * np.array(state["second"]) + (1 - _B2) * gradient**2
    step = first / (1 - _B1**count) / (np.sqrt(second / (1 - _B2**count)) + _EPSILON)
    logits = logits - learning_rate * (step + _DECAY * logits)
    last = [float(now) if s else old for old, now, s in zip(state["rewards"], rewards, seen, strict=True)]
    arrays = {"logits": logits, "first": first, "second": second}
    return {**{name: array.tolist() for name, array in arrays.items()}, "updates": count, "rewards": last}


def plan_round(missing: np.ndarray, flat: np.ndarray, oversample: float) -> list[int]:
    """Returns how many prompts of each task a round samples: missing / (1 - rate of flat groups), within two bounds.

    Args:
        missing: [K] groups that are still wanted of each task.
        flat: [K] share of a task's groups that were all right or all wrong.
        oversample: bound of the round's prompts for each group that is missing, of all tasks together.
    """
    extra = missing * (np.minimum(1 / np.maximum(1 - flat, 1e-9), MOST_TRIES) - 1)
    allowed = oversample * missing.sum() - missing.sum()
    if extra.sum() > allowed:
        extra *= allowed / extra.sum()
    return [int(m) + int(e) for m, e in zip(missing, np.floor(extra + 1e-9), strict=True)]


def select(arms: Sequence[int], mixed: Sequence[bool], quota: Sequence[int] | None, total: int) -> list[int]:
    """Returns which groups are learned from: of the mixed the first `total`, or the first `quota[k]` of each arm k."""
    left = None if quota is None else list(quota)
    chosen: list[int] = []
    for i, (arm, good) in enumerate(zip(arms, mixed, strict=True)):
        if good and len(chosen) < total and (left is None or left[arm] > 0):
            chosen.append(i)
            if left is not None:
                left[arm] -= 1
    return chosen


def fill(chosen: Sequence[int], mixed: Sequence[bool], total: int) -> list[int]:
    """Returns the chosen groups and, as far as `total` goes, the first of the other mixed ones, all in their order."""
    others = [i for i, good in enumerate(mixed) if good and i not in set(chosen)]
    return sorted([*chosen, *others[: total - len(chosen)]])
