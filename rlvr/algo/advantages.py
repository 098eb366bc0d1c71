"""Advantages of groups of samples: host functions in float64 over small arrays.

A sample that is not valid enters neither the mean nor the spread of its group and gets advantage zero; so does a group
of one, where samples are compared with the others of their group (`COMPARING`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlvr import errors

if TYPE_CHECKING:
    from rlvr.algo.objectives import ObjectiveConfig

# Below this spread a group carries no signal: the float mean of identical rewards is not exactly their value, and
# dividing that rounding error by a tiny epsilon would make an advantage of it.
SPREAD_TOLERANCE = 1e-8


class Groups(NamedTuple):
    """The samples of a rollout.

    Attributes:
        rewards: [P, G].
        valid: [P, G] bool, which samples have a verdict worth keeping.
        lengths: [P, G] sampled tokens.
        parts: [K, P, G] the rewards that `rewards` is the weighted sum of, for GDPO.
        part_weights: [K].
    """

    rewards: np.ndarray
    valid: np.ndarray
    lengths: np.ndarray
    parts: np.ndarray | None = None
    part_weights: Sequence[float] = ()


Estimator = Callable[[Groups, "ObjectiveConfig"], np.ndarray]


def reward(groups: Groups, config: ObjectiveConfig) -> np.ndarray:
    """R: no baseline (plain REINFORCE; REINFORCE++ before its whitening, 2501.03262)."""
    return np.where(groups.valid, np.asarray(groups.rewards, np.float64), 0.0)


def grpo(groups: Groups, config: ObjectiveConfig) -> np.ndarray:
    """(R - mean) / (std + epsilon) in the group (GRPO: DeepSeekMath, 2402.03300)."""
    return _standardise(groups.rewards, groups.valid, config)


def dr_grpo(groups: Groups, config: ObjectiveConfig) -> np.ndarray:
    """R - mean in the group, without the spread (Dr. GRPO, 2503.20783)."""
    centred, _, _ = _centre(groups.rewards, groups.valid)
    return np.where(np.abs(centred) > SPREAD_TOLERANCE, centred, 0.0)


def rloo(groups: Groups, config: ObjectiveConfig) -> np.ndarray:
    """R - mean of the others in the group = G/(G-1) (R - mean) (RLOO, 2402.14740)."""
    count = np.sum(groups.valid, axis=1, keepdims=True)
    return dr_grpo(groups, config) * count / np.maximum(count - 1, 1)


def opo(groups: Groups, config: ObjectiveConfig) -> np.ndarray:
    """R - sum(L R) / sum(L) in the group, L being the lengths (OPO, 2505.23585)."""
    centred, _, _ = _centre(groups.rewards, groups.valid, groups.lengths)
    return np.where(np.abs(centred) > SPREAD_TOLERANCE, centred, 0.0)


def maxrl(groups: Groups, config: ObjectiveConfig) -> np.ndarray:
    """(R - mean) / (mean + epsilon) in the group, 0 where the mean is 0 (MaxRL, 2602.02710).

    Of binary rewards: the gradient of the sum over k < G of pass@k / k, which tends to that of log p.
    """
    _check_rewards("maxrl", groups, np.min, lambda least: least >= 0, "rewards of at least 0")
    centred, mean, _ = _centre(groups.rewards, groups.valid)
    spread = np.where(np.abs(centred) > SPREAD_TOLERANCE, centred, 0.0)
    return np.where(mean > 0, spread / np.where(mean > 0, mean + config.epsilon, 1.0), 0.0)


def pass_at_k(groups: Groups, config: ObjectiveConfig) -> np.ndarray:
    """The mean over all k-subsets of the group of the subset's standardised reward, its best one's (2508.10751).

    With N samples, c right, P = 1 - C(N-c, k) / C(N, k) and s = sqrt(P (1 - P)): (1 - P) / s for a right one, and
    (1 - P - C(N-c-1, k-1) / C(N-1, k-1)) / s for a wrong one; 0 where s is 0.
    """

    def of(n: int, c: int, k: int) -> tuple[float, float]:
        p = _pass_rate(n, c, k)
        s = math.sqrt(p * (1 - p))
        if s < SPREAD_TOLERANCE:
            return 0.0, 0.0
        return (1 - p) / s, (1 - p - math.comb(max(n - c - 1, 0), k - 1) / math.comb(n - 1, k - 1)) / s

    return _by_counts("pass_at_k", groups, config, of)


def pkpo(groups: Groups, config: ObjectiveConfig) -> np.ndarray:
    """The unbiased gradient of pass@k (PKPO, 2505.15201), with the leave-one-out baseline of k - 1 others.

    k (1 - rho(n-1, c-1, k-1)) for a right sample, 0 for a wrong one, with rho(n, c, k) = 1 - C(n-c, k) / C(n, k): how
    often it is the only right one of k.
    """
    return _by_counts("pkpo", groups, config, lambda n, c, k: (k * (1 - _pass_rate(n - 1, max(c - 1, 0), k - 1)), 0.0))


def best_of_group(groups: Groups, config: ObjectiveConfig) -> np.ndarray:
    """The best sample gets what it is ahead of the second, the others nothing (2503.19595)."""
    rewards = np.where(groups.valid, np.asarray(groups.rewards, np.float64), -np.inf)
    several = np.sum(groups.valid, axis=1, keepdims=True) > 1
    second, first = np.sort(rewards, axis=1)[:, -2:].T if rewards.shape[1] > 1 else np.zeros((2, len(rewards)))
    lead = np.subtract(first, second, out=np.zeros_like(first), where=several[:, 0])[:, None]
    return np.where(several & (rewards == first[:, None]) & (lead > SPREAD_TOLERANCE), lead, 0.0)


def gdpo(groups: Groups, config: ObjectiveConfig) -> np.ndarray:
    """The weighted sum of each reward's own `grpo` (GDPO, 2601.05242); one without spread adds exactly nothing."""
    assert groups.parts is not None
    each = [_standardise(part, groups.valid, config) for part in groups.parts]
    return np.tensordot(np.asarray(groups.part_weights, np.float64), np.stack(each), axes=1)


ADVANTAGES: dict[str, Estimator] = {
    "reward": reward,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "opo": opo,
    "maxrl": maxrl,
    "pass_at_k": pass_at_k,
    "pkpo": pkpo,
    "best_of_group": best_of_group,
    "gdpo": gdpo,
}

# Those that say nothing about a group of one.
COMPARING = tuple(name for name in ADVANTAGES if name not in ("reward", "pkpo"))
# Those for rewards of 0 and 1, and those for rewards that are not negative.
BINARY = ("pass_at_k", "pkpo")
NON_NEGATIVE = ("maxrl", *BINARY)


def whiten(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns (values - mean) / std over a rollout; 0 where there is no spread.

    Args:
        values: [N].
        counts: [N] how often each counts: 0 for those that are not valid, which stay 0.
    """
    total = max(float(np.sum(counts)), 1.0)
    mean = np.sum(values * counts) / total
    std = math.sqrt(float(np.sum(counts * (values - mean) ** 2)) / total)
    if std <= SPREAD_TOLERANCE:
        return np.zeros_like(values)
    return np.where(counts > 0, (values - mean) / std, 0.0)


def _standardise(rewards: np.ndarray, valid: np.ndarray, config: ObjectiveConfig) -> np.ndarray:
    centred, _, count = _centre(rewards, valid)
    squares = np.sum(centred**2, axis=1, keepdims=True)
    std = np.sqrt(squares / np.maximum(count - config.std_ddof, 1))
    return centred / (np.where(std > SPREAD_TOLERANCE, std, np.inf) + config.epsilon)


def _centre(
    rewards: np.ndarray, valid: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (R - weighted mean of the valid, zero where not valid or alone [P, G]; that mean, number of them)."""
    rewards = np.where(valid, np.asarray(rewards, np.float64), 0.0)
    weights = np.where(valid, 1.0 if weights is None else weights, 0.0)
    count = np.sum(valid, axis=1, keepdims=True)
    total = np.sum(weights, axis=1, keepdims=True)
    mean = np.sum(rewards * weights, axis=1, keepdims=True) / np.where(total > 0, total, 1.0)
    return np.where(valid & (count > 1), rewards - mean, 0.0), mean, count


def _by_counts(
    name: str, groups: Groups, config: ObjectiveConfig, of: Callable[[int, int, int], tuple[float, float]]
) -> np.ndarray:
    """Returns the advantages that depend on (valid samples n, right ones c, k) only; `of` gives (right, wrong)."""
    _check_rewards(name, groups, lambda r: np.max(np.minimum(abs(r), abs(r - 1))), lambda x: x == 0, "rewards 0 and 1")
    right = np.asarray(groups.rewards) == 1
    out = np.zeros(right.shape)
    for p in range(len(out)):
        valid = groups.valid[p]
        n, c = int(np.sum(valid)), int(np.sum(right[p] & valid))
        if n >= config.pass_k:  # of fewer samples than k there is no estimate
            out[p] = np.where(valid, np.where(right[p], *of(n, c, config.pass_k)), 0.0)
    return out


def _pass_rate(n: int, c: int, k: int) -> float:
    """The share of the k-subsets of n samples that hold one of the c right ones."""
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def _check_rewards(
    name: str,
    groups: Groups,
    extreme: Callable[[np.ndarray], float],
    accepts: Callable[[float], bool],
    accepted: str,
) -> None:
    rewards = np.asarray(groups.rewards, np.float64)[groups.valid]
    if len(rewards) and not accepts(extreme(rewards)):
        raise errors.DataError(
            f"objective.advantage={name!r} is for {accepted}; the step's go from {rewards.min():g} to {rewards.max():g}"
        )
