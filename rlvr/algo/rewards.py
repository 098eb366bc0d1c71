"""From verdicts to rewards: what a status is worth, and which samples are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rlvr import errors
from rlvr.algo.lengths import LengthConfig
from rlvr.types import AUDIT_PREFIX, Verdict

MAX_PENALTY = 100.0


@dataclasses.dataclass
class RewardConfig:
    """What becomes of a completion that was not judged to the end, or that the audit accuses.

    Attributes:
        on_timeout, on_error, on_refused: "zero" gives reward 0. "mask" leaves the sample out: it enters neither its
            group's mean nor the loss, as fits a failure that is not the policy's. Both are counted in the metrics.
        audit_penalty: c >= 0. Where c > 0, the reward R of a sample on which any flag of `rlvr.verifiers.audit` was
            raised becomes min(R, -c): worth less than any honest failure. 0 only counts the flags.
        parts: names of parts of the verdicts. Where there are any, the reward is their weighted sum instead of the
            score, and advantage "gdpo" takes each by itself.
        part_weights: one for each of them.
        length: what a sample's length changes.
    """

    on_timeout: str = "zero"
    on_error: str = "mask"
    on_refused: str = "zero"
    audit_penalty: float = 0.0
    parts: tuple[str, ...] = ()
    part_weights: tuple[float, ...] = ()
    length: LengthConfig = dataclasses.field(default_factory=LengthConfig)

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        for name in ("on_timeout", "on_error", "on_refused"):
            errors.check_choice(f"reward.{name}", getattr(self, name), ("zero", "mask"))
        errors.check_between("reward.audit_penalty", self.audit_penalty, 0.0, MAX_PENALTY)
        self.length.validate("reward.length")
        if len(self.parts) != len(self.part_weights) or len(set(self.parts)) != len(self.parts):
            raise errors.ConfigError(
                f"reward.parts={self.parts} with reward.part_weights={self.part_weights}: one weight for each part, "
                "each part once"
            )
        if self.parts and self.length.cosine:
            raise errors.ConfigError(
                f"reward.length.cosine=True with reward.parts={self.parts}: both take the place of the score"
            )


def compute_rewards(verdicts: Sequence[Verdict], config: RewardConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rewards float64, valid bool), one for each verdict; a masked one's reward is 0.

    Raises:
        DataError: a verdict has no part of a name in `parts`.
    """
    scores = [0.0 if v.status in _unjudged(config) else v.score for v in verdicts]
    rewards = np.array(scores, np.float64)
    if config.parts:
        rewards = np.array(config.part_weights, np.float64) @ part_rewards(verdicts, config)
    if config.audit_penalty:
        accused = np.array([is_accused(v) for v in verdicts], bool)
        rewards = np.where(accused, np.minimum(rewards, -config.audit_penalty), rewards)
    valid = find_valid(verdicts, config)
    return np.where(valid, rewards, 0.0), valid


def find_valid(verdicts: Sequence[Verdict], config: RewardConfig) -> np.ndarray:
    """Returns which verdicts are not masked, bool."""
    return np.array([_unjudged(config).get(v.status) != "mask" for v in verdicts], bool)


def _unjudged(config: RewardConfig) -> dict[str, str]:
    return {"timeout": config.on_timeout, "error": config.on_error, "refused": config.on_refused}


def part_rewards(verdicts: Sequence[Verdict], config: RewardConfig) -> np.ndarray:
    """Returns the rewards [K, samples] of `parts`; 0 for a verdict that was not reached.

    A part that a gate left unasked is None in the verdict, and 0 here.

    Raises:
        DataError: a verdict has no part of that name.
    """

    def of(verdict: Verdict, name: str) -> float:
        if verdict.status in ("timeout", "error", "refused"):
            return 0.0
        if name not in verdict.parts:
            raise errors.DataError(
                f"reward.parts names {name!r}, which a verdict does not have{errors.nearest(name, verdict.parts)} (its "
                f"parts: {', '.join(sorted(verdict.parts))})"
            )
        return verdict.parts[name] or 0.0

    return np.array([[of(verdict, name) for verdict in verdicts] for name in config.parts], np.float64)


def is_accused(verdict: Verdict) -> bool:
    """Whether the audit raised a flag."""
    return any(name.startswith(AUDIT_PREFIX) and bool(value) for name, value in verdict.parts.items())
