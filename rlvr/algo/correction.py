"""Corrections for samples that another policy drew than the one the ratio is taken against.

The weight of a token is w = old / rollout, where `old` is the policy that the surrogate's ratio starts from and
`rollout` the distribution recorded at sampling: other numerics, or a policy some updates older. Weights have no
gradient, multiply the policy's loss only (not the KL or entropy terms), and change no denominator: dividing by the
survivors would make the gradient larger the more is dropped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlvr import errors
from rlvr.algo.kl import LOG_RATIO_LIMIT
from rlvr.masked import masked, segment_mean, segment_sum

LEVELS = ("token", "seq_geo", "seq_prod")
REJECTIONS = ("none", "seq_geo", "seq_prod", "outlier")


@dataclasses.dataclass
class CorrectionConfig:
    """What becomes of w = old / rollout.

    Attributes:
        rule: "none"; "untruncated", w as it is (decoupled PPO: AReaL, 2505.24298); "tis", min(w, high); "mis", w up to
            `high`, 0 above; "icepop", w in [low, high], 0 outside.
        level: what the rule is applied to: the "token"'s w; "seq_geo", the geometric mean of its sequence's; or
            "seq_prod", their product. (Other projects call either of the last two "sequence".)
        low, high: bounds of the rule.
        reject: sequences left out as a whole, besides the rule: those whose w is out of [reject_low, reject_high] as a
            geometric mean ("seq_geo"), as a product ("seq_prod"), or in any single token ("outlier").
        reject_low, reject_high: bounds of that.
        opsm: > 0 leaves out sequences with A < 0 whose mean of log rollout - log policy is above it (DeepSeek-V3.2,
            2512.02556): what the policy has left behind already. 0 is off.
    """

    rule: str = "none"
    level: str = "token"
    low: float = 0.0
    high: float = 2.0
    reject: str = "none"
    reject_low: float = 0.0
    reject_high: float = 2.0
    opsm: float = 0.0

    def validate(self, field: str) -> None:
        """Raises ConfigError naming the field that cannot work."""
        errors.check_choice(f"{field}.rule", self.rule, ("none", *RULES))
        errors.check_choice(f"{field}.level", self.level, LEVELS)
        errors.check_choice(f"{field}.reject", self.reject, REJECTIONS)
        errors.check_at_least(f"{field}.opsm", self.opsm, 0.0)
        for low, high in (("low", "high"), ("reject_low", "reject_high")):
            errors.check_between(f"{field}.{low}", getattr(self, low), 0.0, 1.0)
            errors.check_at_least(f"{field}.{high}", getattr(self, high), 1.0)
        if self.rule == "icepop" and self.low == 0.0:
            raise errors.ConfigError(
                f"{field}.low=0.0 with {field}.rule='icepop', which has a lower bound too (such as 0.5): set it, "
                "or use 'mis'"
            )
        if self.low and self.rule != "icepop":
            raise errors.ConfigError(f"{field}.low={self.low} is used by {field}.rule='icepop' only, not {self.rule!r}")

    def compares(self) -> bool:
        """Whether w is needed at all."""
        return self.rule != "none" or self.reject != "none"


RULES: dict[str, Callable[[jax.Array, CorrectionConfig], jax.Array]] = {
    "untruncated": lambda w, config: w,
    "tis": lambda w, config: jnp.minimum(w, config.high),
    "mis": lambda w, config: jnp.where(w <= config.high, w, 0.0),
    "icepop": lambda w, config: jnp.where((w >= config.low) & (w <= config.high), w, 0.0),
}


def correct(
    log_w: jax.Array, mask: jax.Array, sequences: jax.Array, config: CorrectionConfig
) -> tuple[jax.Array, jax.Array]:
    """Returns the factor of each token's policy loss, and where it is another than w.

    Args:
        log_w: [R, S] log old - log rollout; garbage where not mask.
        mask: [R, S].
        sequences: [R, S] int32 which sequence of its row a token belongs to.

    Returns:
        (weights [R, S], 1 where not mask; changed [R, S] bool).
    """
    log_w = masked(log_w, mask)
    product = segment_sum(log_w, mask, sequences)
    mean = segment_mean(log_w, mask, sequences)
    weights, changed = jnp.ones_like(log_w), jnp.zeros_like(mask)
    if config.rule != "none":
        level = {"token": log_w, "seq_geo": mean, "seq_prod": product}[config.level]
        w = jnp.exp(jnp.clip(level, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
        weights = RULES[config.rule](w, config)
        changed = weights != w
    if config.reject != "none":
        low, high = _log(config.reject_low), _log(config.reject_high)
        outside = (log_w < low) | (log_w > high)
        rejected = {
            "seq_geo": (mean < low) | (mean > high),
            "seq_prod": (product < low) | (product > high),
            "outlier": segment_sum(outside.astype(log_w.dtype), mask, sequences) > 0,
        }[config.reject]
        weights = jnp.where(rejected, 0.0, weights)
        changed |= rejected
    return jnp.where(mask, weights, 1.0), changed & mask


def keep_on_policy(
    log_moved: jax.Array, advantages: jax.Array, mask: jax.Array, sequences: jax.Array, config: CorrectionConfig
) -> jax.Array:
    """Returns where `opsm` keeps a token, [R, S] bool.

    Args:
        log_moved: [R, S] log rollout - log policy.
        advantages: [R, S].
        Others: see `correct`.
    """
    mean = segment_mean(log_moved, mask, sequences)
    return ~((segment_mean(advantages, mask, sequences) < 0) & (mean > config.opsm))


def _log(bound: float) -> float:
    return math.log(bound) if bound > 0 else -float("inf")
