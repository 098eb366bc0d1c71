"""Advantages of groups of samples: host functions in float64 over small arrays.

Rewards are [P, G]; `valid` [P, G] marks the samples that have a verdict worth keeping. A sample that is not valid
enters neither the mean nor the spread of its group and gets advantage zero; so does a group of one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Below this spread a group carries no signal: the float mean of identical rewards is not exactly their value, and
# dividing that rounding error by a tiny epsilon would make an advantage of it.
SPREAD_TOLERANCE = 1e-8


def grpo(rewards: np.ndarray, valid: np.ndarray, *, std_ddof: int, epsilon: float) -> np.ndarray:
    """(R - mean) / (std + epsilon) in the group (GRPO: DeepSeekMath, 2402.03300).

    Args:
        rewards, valid: [P, G].
        std_ddof: 1 for the sample standard deviation (verl, TRL, tunix), 0 for the population's (open-instruct).
        epsilon: added to the deviation.
    """
    centred, count = _centre(rewards, valid)
    squares = np.sum(centred**2, axis=1, keepdims=True)
    std = np.sqrt(squares / np.maximum(count - std_ddof, 1))
    return centred / (np.where(std > SPREAD_TOLERANCE, std, np.inf) + epsilon)


def dr_grpo(rewards: np.ndarray, valid: np.ndarray, *, std_ddof: int, epsilon: float) -> np.ndarray:
    """R - mean in the group, without the spread (Dr. GRPO, 2503.20783)."""
    del std_ddof, epsilon
    centred, _ = _centre(rewards, valid)
    return np.where(np.abs(centred) > SPREAD_TOLERANCE, centred, 0.0)


def rloo(rewards: np.ndarray, valid: np.ndarray, *, std_ddof: int, epsilon: float) -> np.ndarray:
    """R - mean of the others in the group = G/(G-1) (R - mean) (RLOO, 2402.14740)."""
    centred = dr_grpo(rewards, valid, std_ddof=std_ddof, epsilon=epsilon)
    count = np.sum(valid, axis=1, keepdims=True)
    return centred * count / np.maximum(count - 1, 1)


ADVANTAGES: dict[str, Callable[..., np.ndarray]] = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}


def _centre(rewards: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (R - mean of the valid, zero where not valid or alone; number of the valid), [P, G] and [P, 1]."""
    rewards = np.asarray(rewards, np.float64)
    count = np.sum(valid, axis=1, keepdims=True)
    mean = np.sum(np.where(valid, rewards, 0.0), axis=1, keepdims=True) / np.maximum(count, 1)
    return np.where(valid & (count > 1), rewards - mean, 0.0), count
