"""Tokens chosen by a quantity of the whole minibatch: the most uncertain ones, those that drive entropy down, and those
that the policy has moved least on.

Host functions over the tokens of all sequences of an optimizer step, from log-probs and entropies measured before it,
so that what is chosen does not depend on how the step is split.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rlvr import errors
from rlvr.masked import module_of

if TYPE_CHECKING:
    from rlvr.algo.objectives import ObjectiveConfig

COVARIANCES = ("none", "clip_cov", "kl_cov")


@dataclasses.dataclass
class SelectionConfig:
    """Which tokens are treated apart. Anything but the defaults costs one more forward pass for each minibatch.

    Attributes:
        top_entropy: share of the tokens, those of the highest entropy, that keep their policy gradient (2506.01939:
            0.2); 1 is all.
        high_entropy_clip: for surrogate "aspo": clip_low and clip_high of the tokens above `entropy_quantile`.
        entropy_quantile: see `high_entropy_clip`.
        covariance: "clip_cov" takes the policy gradient from `share` of all tokens, drawn from those whose
            covariance (A - mean A)(log policy - mean) lies between `low` and `high` and that are not clipped anyway;
            "kl_cov" adds coef * |log policy / old policy| to the loss of the `share` of highest covariance
            (2505.22617). At least one token.
        share, low, high, coef: see `covariance`.
        second_moment: > 0 takes the policy gradient from the tokens of largest m = (log policy - log rollout)^2, so
            that the mean of m over those that are left is below it (M2PO, 2510.01161: 0.04); 0 is off.
    """

    top_entropy: float = 1.0
    high_entropy_clip: float = 0.4
    entropy_quantile: float = 0.8
    covariance: str = "none"
    share: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    coef: float = 1.0
    second_moment: float = 0.0

    def validate(self, field: str) -> None:
        """Raises ConfigError naming the field that cannot work."""
        errors.check_choice(f"{field}.covariance", self.covariance, COVARIANCES)
        for name in ("top_entropy", "entropy_quantile", "share"):
            errors.check_between(f"{field}.{name}", getattr(self, name), 1e-9, 1.0)
        errors.check_at_least(f"{field}.high_entropy_clip", self.high_entropy_clip, 0.0)
        errors.check_at_least(f"{field}.coef", self.coef, 0.0)
        errors.check_at_least(f"{field}.high", self.high, self.low)
        errors.check_at_least(f"{field}.second_moment", self.second_moment, 0.0)

    def chooses(self) -> bool:
        """Whether any tokens are treated apart, whatever the surrogate."""
        return self.top_entropy < 1 or self.covariance != "none" or self.second_moment > 0


def select_high_entropy(entropies: Sequence[np.ndarray], config: ObjectiveConfig) -> list[np.ndarray]:
    """Returns which tokens of each sequence are uncertain: [C] bool each.

    Under "aspo" those above the quantile, for `top_entropy` those at or above it.

    Args:
        entropies: [C] of every sequence of the minibatch.
    """
    threshold = np.quantile(np.concatenate(entropies), entropy_quantile(config))
    return [is_uncertain(own, threshold, config) for own in entropies]


def entropy_quantile(config: ObjectiveConfig) -> float:
    """Returns the quantile of the minibatch's entropies from which a token is uncertain."""
    own = config.selection
    return own.entropy_quantile if config.surrogate == "aspo" else 1.0 - own.top_entropy


def is_uncertain(entropies: Any, threshold: Any, config: ObjectiveConfig) -> Any:
    """Returns which entropies are above the threshold (for `top_entropy` at it too), of NumPy or JAX."""
    return entropies > threshold if config.surrogate == "aspo" else entropies >= threshold


def select_high_covariance(
    logprobs: Sequence[np.ndarray],
    old: Sequence[np.ndarray],
    advantages: Sequence[np.ndarray],
    draws: Sequence[np.ndarray],
    config: ObjectiveConfig,
) -> list[np.ndarray]:
    """Returns which tokens of each sequence `covariance` picks: [C] bool each.

    Args:
        logprobs: [C] under the policy before the step, of every sequence of the minibatch.
        old: [C] under the policy that the ratio is taken against.
        advantages: [C].
        draws: [C] uniform random numbers, which order the candidates of "clip_cov"; see `draw`.
    """
    own = config.selection
    now, a = np.concatenate(logprobs).astype(np.float64), np.concatenate(advantages).astype(np.float64)
    covariance = (a - a.mean()) * (now - now.mean())
    count = max(int(own.share * len(now)), 1)
    if own.covariance == "kl_cov":
        order = np.argsort(-covariance, kind="stable")
    else:
        ratio = np.exp(now - np.concatenate(old))
        clipped = ((a > 0) & (ratio > 1 + config.clip_high)) | ((a < 0) & (ratio < 1 - config.clip_low))
        candidates = np.flatnonzero((covariance > own.low) & (covariance < own.high) & ~clipped)
        order = candidates[np.argsort(np.concatenate(draws)[candidates], kind="stable")]
    chosen = np.zeros(len(now), bool)
    chosen[order[:count]] = True
    return np.split(chosen, np.cumsum([len(x) for x in logprobs])[:-1])


def select_small_moment(
    logprobs: Sequence[np.ndarray], rollout: Sequence[np.ndarray], config: ObjectiveConfig
) -> list[np.ndarray]:
    """Returns which tokens of each sequence `second_moment` keeps: [C] bool each.

    The smallest m are kept, as many as have a mean below it, and at least the smallest. Equal ones share their fate.

    Args:
        logprobs: [C] under the policy before the step, of every sequence of the minibatch.
        rollout: [C] at sampling.
    """
    moments = np.square(np.concatenate(logprobs).astype(np.float64) - np.concatenate(rollout))
    ordered = np.sort(moments)
    means = np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
    count = int(np.searchsorted(means, config.selection.second_moment))  # means never fall
    kept = moments < ordered[count] if count < len(ordered) else np.ones(len(ordered), bool)
    kept |= moments == ordered[0]
    return np.split(kept, np.cumsum([len(x) for x in logprobs])[:-1])


def draw(*parts: np.ndarray, count: int) -> np.ndarray:
    """Returns `count` uniform numbers that depend on the contents alone, not on the order of the sequences.

    Args:
        parts: arrays that tell a sequence (and the policy that sampled it) from others.
    """
    digest = hashlib.sha256(b"|".join(np.ascontiguousarray(part).tobytes() for part in parts)).digest()
    return np.random.default_rng(int.from_bytes(digest, "big")).random(count)


class EntropyBonus(NamedTuple):
    """What the entropy bonus of a step is.

    Attributes:
        coef: its coefficient.
        active: whether it counts.
    """

    coef: Any
    active: Any


def adapt_entropy_bonus(bonus: EntropyBonus, entropy: Any, config: ObjectiveConfig) -> EntropyBonus:
    """Returns the bonus of the next step (Skywork-OR1, 2505.22312).

    After a step whose mean entropy was at or below the target the coefficient rises by `entropy_step` and the bonus
    counts; after one above it falls by as much and does not count. It stays in [0, entropy_max].

    Args:
        bonus: of this step.
        entropy: mean over all tokens of this step, nats; a number, or JAX's.
        config: with an `entropy_target`.
    """
    xp = module_of(entropy)
    low = entropy <= config.entropy_target
    coef = bonus.coef + xp.where(low, config.entropy_step, -config.entropy_step)
    return EntropyBonus(xp.clip(coef, 0.0, config.entropy_max), low)
