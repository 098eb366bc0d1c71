"""From verdicts to rewards: what a status is worth, and which samples are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rlvr import errors
from rlvr.types import Verdict


@dataclasses.dataclass
class RewardConfig:
    """What becomes of a completion that was not judged to the end.

    "zero" gives reward 0. "mask" leaves the sample out: it enters neither its group's mean nor the loss, as fits a
    failure that is not the policy's. Both are counted in the metrics.
    """

    on_timeout: str = "zero"
    on_error: str = "mask"
    on_refused: str = "zero"

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        for name in ("on_timeout", "on_error", "on_refused"):
            errors.check_choice(f"reward.{name}", getattr(self, name), ("zero", "mask"))


def compute_rewards(verdicts: Sequence[Verdict], config: RewardConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rewards float64, valid bool), one for each verdict; a masked one's reward is 0."""
    special = {"timeout": config.on_timeout, "error": config.on_error, "refused": config.on_refused}
    rewards = np.array([0.0 if v.status in special else v.score for v in verdicts], np.float64)
    valid = np.array([special.get(v.status) != "mask" for v in verdicts], bool)
    return rewards, valid
