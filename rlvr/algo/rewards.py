"""From verdicts to rewards: what a status is worth, and which samples are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rlvr import errors
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
    """

    on_timeout: str = "zero"
    on_error: str = "mask"
    on_refused: str = "zero"
    audit_penalty: float = 0.0

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        for name in ("on_timeout", "on_error", "on_refused"):
            errors.check_choice(f"reward.{name}", getattr(self, name), ("zero", "mask"))
        errors.check_between("reward.audit_penalty", self.audit_penalty, 0.0, MAX_PENALTY)


def compute_rewards(verdicts: Sequence[Verdict], config: RewardConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rewards float64, valid bool), one for each verdict; a masked one's reward is 0."""
    special = {"timeout": config.on_timeout, "error": config.on_error, "refused": config.on_refused}
    rewards = np.array([0.0 if v.status in special else v.score for v in verdicts], np.float64)
    if config.audit_penalty:
        accused = np.array([is_accused(v) for v in verdicts], bool)
        rewards = np.where(accused, np.minimum(rewards, -config.audit_penalty), rewards)
    valid = np.array([special.get(v.status) != "mask" for v in verdicts], bool)
    return np.where(valid, rewards, 0.0), valid


def is_accused(verdict: Verdict) -> bool:
    """Whether the audit raised a flag."""
    return any(name.startswith(AUDIT_PREFIX) and bool(value) for name, value in verdict.parts.items())
