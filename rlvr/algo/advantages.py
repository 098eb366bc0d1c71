"""Advantages of groups of samples, over small arrays: NumPy's, in float64, or JAX's, in their own type and under jit.

A sample that is not valid enters neither the mean nor the spread of its group and gets advantage zero; so does a group
of one, where samples are compared with the others of their group (`COMPARING`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from rlvr import errors
from rlvr.masked import module_of, wide

if TYPE_CHECKING:
    from rlvr.algo.objectives import ObjectiveConfig

# Below this spread a group carries no signal: the float mean of identical rewards is not exactly their value, and
# dividing that rounding error by a tiny epsilon would make an advantage of it.
SPREAD_TOLERANCE = 1e-8
_SPREAD_TOLERANCE_32 = 1e-6  # of float32


class Groups(NamedTuple):
    """The samples of a rollout.

    Attributes:
        rewards: [P, G].
        valid: [P, G] bool, which samples have a verdict worth keeping.
        lengths: [P, G] sampled tokens.
        parts: [K, P, G] the rewards that `rewards` is the weighted sum of, for GDPO.
        part_weights: [K].
    """

    rewards: Any
    valid: Any
    lengths: Any
    parts: Any = None
    part_weights: Sequence[float] = ()


Estimator = Callable[[Groups, "ObjectiveConfig"], Any]


def reward(groups: Groups, config: ObjectiveConfig) -> Any:
    """R: no baseline (plain REINFORCE; REINFORCE++ before its whitening, 2501.03262)."""
    return module_of(groups.rewards).where(groups.valid, wide(groups.rewards), 0.0)


def grpo(groups: Groups, config: ObjectiveConfig) -> Any:
    """(R - mean) / (std + epsilon) in the group (GRPO: DeepSeekMath, 2402.03300)."""
    return _standardise(groups.rewards, groups.valid, config)


def dr_grpo(groups: Groups, config: ObjectiveConfig) -> Any:
    """R - mean in the group, without the spread (Dr. GRPO, 2503.20783)."""
    return _without_rounding(_centre(groups.rewards, groups.valid)[0])


def rloo(groups: Groups, config: ObjectiveConfig) -> Any:
    """R - mean of the others in the group = G/(G-1) (R - mean) (RLOO, 2402.14740)."""
    xp = module_of(groups.rewards)
    count = xp.sum(groups.valid, axis=1, keepdims=True)
    return dr_grpo(groups, config) * count / xp.maximum(count - 1, 1)


def opo(groups: Groups, config: ObjectiveConfig) -> Any:
    """R - sum(L R) / sum(L) in the group, L being the lengths (OPO, 2505.23585)."""
    return _without_rounding(_centre(groups.rewards, groups.valid, groups.lengths)[0])


def maxrl(groups: Groups, config: ObjectiveConfig) -> Any:
    """(R - mean) / (mean + epsilon) in the group, 0 where the mean is 0 (MaxRL, 2602.02710).

    Of binary rewards: the gradient of the sum over k < G of pass@k / k, which tends to that of log p.
    """
    _check_rewards("maxrl", groups, np.min, lambda least: least >= 0, "rewards of at least 0")
    xp = module_of(groups.rewards)
    centred, mean, _ = _centre(groups.rewards, groups.valid)
    spread = _without_rounding(centred)
    return xp.where(mean > 0, spread / xp.where(mean > 0, mean + config.epsilon, 1.0), 0.0)


def pass_at_k(groups: Groups, config: ObjectiveConfig) -> Any:
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


def pkpo(groups: Groups, config: ObjectiveConfig) -> Any:
    """The unbiased gradient of pass@k (PKPO, 2505.15201), with the leave-one-out baseline of k - 1 others.

    k (1 - rho(n-1, c-1, k-1)) for a right sample, 0 for a wrong one, with rho(n, c, k) = 1 - C(n-c, k) / C(n, k): how
    often it is the only right one of k.
    """
    return _by_counts("pkpo", groups, config, lambda n, c, k: (k * (1 - _pass_rate(n - 1, max(c - 1, 0), k - 1)), 0.0))


def best_of_group(groups: Groups, config: ObjectiveConfig) -> Any:
    """The best sample gets what it is ahead of the second, the others nothing (2503.19595)."""
    xp = module_of(groups.rewards)
    rewards = xp.where(groups.valid, wide(groups.rewards), -xp.inf)
    several = xp.sum(groups.valid, axis=1, keepdims=True) > 1
    order = xp.sort(rewards, axis=1)
    first, second = order[:, -1:], order[:, -2:-1] if rewards.shape[1] > 1 else order
    lead = xp.where(several, first, 0.0) - xp.where(several, second, 0.0)
    return xp.where(several & (rewards == first) & (lead > _tolerance(lead)), lead, 0.0)


def gdpo(groups: Groups, config: ObjectiveConfig) -> Any:
    """The weighted sum of each reward's own `grpo` (GDPO, 2601.05242); one without spread adds exactly nothing."""
    assert groups.parts is not None
    xp = module_of(groups.parts)
    each = [_standardise(part, groups.valid, config) for part in groups.parts]
    return xp.tensordot(wide(xp.asarray(groups.part_weights)), xp.stack(each), axes=1)


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


def whiten(values: Any, counts: Any) -> Any:
    """Returns (values - mean) / std over a rollout; 0 where there is no spread.

    Args:
        values: [N].
        counts: [N] how often each counts: 0 for those that are not valid, which stay 0.
    """
    xp = module_of(values)
    total = xp.maximum(xp.sum(counts), 1.0)
    centred = values - xp.sum(values * counts) / total
    std = xp.sqrt(xp.sum(counts * centred**2) / total)
    spread = std > _tolerance(values)
    return xp.where((counts > 0) & spread, centred / xp.where(spread, std, 1.0), 0.0)


def _tolerance(values: Any) -> float:
    return _SPREAD_TOLERANCE_32 if values.dtype == np.float32 else SPREAD_TOLERANCE


def _without_rounding(centred: Any) -> Any:
    xp = module_of(centred)
    return xp.where(xp.abs(centred) > _tolerance(centred), centred, 0.0)


def _standardise(rewards: Any, valid: Any, config: ObjectiveConfig) -> Any:
    xp = module_of(rewards)
    centred, _, count = _centre(rewards, valid)
    squares = xp.sum(centred**2, axis=1, keepdims=True)
    std = xp.sqrt(squares / xp.maximum(count - config.std_ddof, 1))
    return centred / (xp.where(std > _tolerance(centred), std, xp.inf) + config.epsilon)


def _centre(rewards: Any, valid: Any, weights: Any = None) -> tuple[Any, Any, Any]:
    """Returns (R - weighted mean of the valid, zero where not valid or alone [P, G]; that mean, number of them)."""
    xp = module_of(rewards)
    rewards = xp.where(valid, wide(rewards), 0.0)
    weights = xp.where(valid, 1.0 if weights is None else wide(weights), 0.0)
    count = xp.sum(valid, axis=1, keepdims=True)
    total = xp.sum(weights, axis=1, keepdims=True)
    mean = xp.sum(rewards * weights, axis=1, keepdims=True) / xp.where(total > 0, total, 1.0)
    return xp.where(valid & (count > 1), rewards - mean, 0.0), mean, count


def _by_counts(
    name: str, groups: Groups, config: ObjectiveConfig, of: Callable[[int, int, int], tuple[float, float]]
) -> Any:
    """Returns the advantages that depend on (valid samples n, right ones c, k) only; `of` gives (right, wrong)."""
    _check_rewards(name, groups, lambda r: np.max(np.minimum(abs(r), abs(r - 1))), lambda x: x == 0, "rewards 0 and 1")
    xp, size = module_of(groups.rewards), groups.rewards.shape[1]
    table = np.zeros((size + 1, size + 1, 2))
    for n in range(max(config.pass_k, 1), size + 1):  # of fewer samples than k there is no estimate
        for c in range(n + 1):
            table[n, c] = of(n, c, config.pass_k)
    right = groups.rewards == 1
    n, c = (xp.sum(x, axis=1) for x in (groups.valid, right & groups.valid))
    found = wide(xp.asarray(table))[n, c]
    return xp.where(groups.valid, xp.where(right, found[:, :1], found[:, 1:]), 0.0)


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
    if isinstance(groups.rewards, jax.Array):
        return  # not known while a program is made
    rewards = np.asarray(groups.rewards, np.float64)[groups.valid]
    if len(rewards) and not accepts(extreme(rewards)):
        raise errors.DataError(
            f"objective.advantage={name!r} is for {accepted}; the step's go from {rewards.min():g} to {rewards.max():g}"
        )
