"""Rewards for length, in sampled tokens, never in characters: pure functions over arrays of NumPy or JAX."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rlvr import errors
from rlvr.masked import module_of, wide

MAX_WEIGHT = 100.0


@dataclasses.dataclass
class LengthConfig:
    """How a sample's length changes its reward. All off by default; the order is that of the attributes.

    Attributes:
        cosine: the reward becomes that of `shape_cosine` instead of the verdict's.
        right_short, right_long, wrong_short, wrong_long: its ends, for right and wrong samples, at lengths 0 and the
            generation budget.
        linear: weight of `penalise_linearly`; 0 is off. Rewards should lie in [0, 1].
        overlong_buffer: tokens before the generation budget over which `punish_overlong` rises to its full size; 0 is
            off.
        overlong_weight: its size.
        repetition: weight of `1 - different / all` word n-grams, taken off the reward; 0 is off.
        repetition_n: words of an n-gram.
        drop_truncated: samples cut off by the budget keep their place in the group's mean, but are not learned from
            (overlong filtering).
    """

    cosine: bool = False
    right_short: float = 1.0
    right_long: float = 0.5
    wrong_short: float = -0.5
    wrong_long: float = 0.0
    linear: float = 0.0
    overlong_buffer: int = 0
    overlong_weight: float = 1.0
    repetition: float = 0.0
    repetition_n: int = 3
    drop_truncated: bool = False

    def validate(self, field: str) -> None:
        """Raises ConfigError naming the field that cannot work."""
        errors.check_at_least(f"{field}.overlong_buffer", self.overlong_buffer, 0)
        errors.check_between(f"{field}.repetition_n", self.repetition_n, 1, 64)
        for name in ("linear", "overlong_weight", "repetition"):
            errors.check_between(f"{field}.{name}", getattr(self, name), 0.0, MAX_WEIGHT)
        for name in ("right_short", "right_long", "wrong_short", "wrong_long"):
            errors.check_between(f"{field}.{name}", getattr(self, name), -MAX_WEIGHT, MAX_WEIGHT)

    def lowers(self) -> bool:
        """Whether rewards of 0 and 1 can become others."""
        return self.cosine or max(self.linear, self.overlong_buffer * self.overlong_weight, self.repetition) > 0


def punish_overlong(lengths: Any, budget: int, buffer: int) -> Any:
    """Returns the soft overlong punishment of DAPO (2503.14476, equation 13), in [-1, 0], to add to rewards.

    0 up to budget - buffer, then ((budget - buffer) - L) / buffer; a truncated sample has L = budget and gets -1.
    """
    return module_of(lengths).clip((budget - buffer - wide(lengths)) / buffer, -1.0, 0.0)


def shape_cosine(lengths: Any, right: Any, budget: int, config: LengthConfig) -> Any:
    """Returns long + (short - long) (1 + cos(pi L / budget)) / 2 with the ends of right and of wrong samples.

    (2502.03373.) Lengths over the budget count as the budget: the cosine would rise again.
    """
    xp = module_of(lengths)
    short = xp.where(right, config.right_short, config.wrong_short)
    long = xp.where(right, config.right_long, config.wrong_long)
    at = xp.minimum(wide(lengths) / budget, 1.0)
    return long + (short - long) * (1.0 + xp.cos(np.pi * at)) / 2.0


def penalise_linearly(rewards: Any, lengths: Any, valid: Any, weight: Any) -> Any:
    """Returns R - weight * (mean R of the group) * L / (longest of the group): prime-rl's linear length penalty.

    Nothing for groups without a success; right and wrong samples alike.

    Args:
        rewards, lengths, valid: [P, G]; samples that are not valid count nowhere and keep their reward.
    """
    xp = module_of(rewards)
    count = xp.maximum(xp.sum(valid, axis=1, keepdims=True), 1)
    mean = xp.sum(xp.where(valid, rewards, 0.0), axis=1, keepdims=True) / count
    longest = xp.maximum(xp.max(xp.where(valid, lengths, 0), axis=1, keepdims=True), 1)
    return xp.where(valid, rewards - weight * mean * lengths / longest, rewards)
