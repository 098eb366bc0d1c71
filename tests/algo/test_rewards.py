"""What each status of a verdict is worth."""

import numpy as np
import pytest

from rlvr import errors
from rlvr.algo.rewards import RewardConfig, compute_rewards
from rlvr.types import STATUSES, Verdict

SCORES = {"correct": 1.0, "wrong": 0.25, "unparsed": -0.5, "timeout": 1.0, "error": None, "refused": 1.0}


def judge(**fields: str) -> tuple[dict[str, float], dict[str, bool]]:
    verdicts = [Verdict(SCORES[status], status) for status in STATUSES]
    rewards, valid = compute_rewards(verdicts, RewardConfig(**fields))
    assert rewards.dtype == np.float64 and valid.dtype == bool
    return dict(zip(STATUSES, rewards, strict=True)), dict(zip(STATUSES, valid, strict=True))


def test_defaults() -> None:
    rewards, valid = judge()
    # A verdict that was not reached is worth nothing, whatever score it carries or lacks.
    assert rewards == {"correct": 1.0, "wrong": 0.25, "unparsed": -0.5, "timeout": 0.0, "error": 0.0, "refused": 0.0}
    assert [status for status in STATUSES if not valid[status]] == ["error"]


@pytest.mark.parametrize("status", ["timeout", "error", "refused"])
def test_each_status_is_masked_alone(status: str) -> None:
    fields = dict.fromkeys(("on_timeout", "on_error", "on_refused"), "zero") | {f"on_{status}": "mask"}
    rewards, valid = judge(**fields)
    assert [s for s, kept in valid.items() if not kept] == [status]
    assert rewards[status] == 0 and np.isfinite(list(rewards.values())).all()


@pytest.mark.parametrize("field", ["on_timeout", "on_error", "on_refused"])
def test_other_words_are_refused(field: str) -> None:
    with pytest.raises(errors.ConfigError, match=f"reward.{field}='drop'"):
        RewardConfig(**{field: "drop"}).validate()
