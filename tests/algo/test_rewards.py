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


def test_what_the_audit_accuses_is_worth_less_than_any_honest_failure() -> None:
    accused, cleared = {"audit/exits": 1.0, "audit/spam": 0.0, "gold": 0.0}, {"audit/exits": 0.0, "gold": 1.0}
    verdicts = [
        Verdict(1.0, "correct", parts=accused),
        Verdict(0.0, "timeout", parts=accused),
        Verdict(-2.0, "wrong", parts=accused),
        Verdict(0.0, "wrong", parts=cleared),
        Verdict(1.0, "correct", parts=cleared),
        Verdict(None, "error", parts={**accused, "audit/other": None}),
    ]
    rewards, valid = compute_rewards(verdicts, RewardConfig(audit_penalty=0.5))
    assert rewards.tolist() == [-0.5, -0.5, -2.0, 0.0, 1.0, 0.0]  # min(R, -c); what is masked stays out
    assert valid.tolist() == [True] * 5 + [False]
    assert compute_rewards(verdicts, RewardConfig())[0].tolist() == [1.0, 0.0, -2.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("penalty", [-1.0, float("nan"), float("inf")])
def test_a_penalty_that_cannot_work_is_refused(penalty: float) -> None:
    with pytest.raises(errors.ConfigError, match=f"reward.audit_penalty={penalty}"):
        RewardConfig(audit_penalty=penalty).validate()


@pytest.mark.parametrize("field", ["on_timeout", "on_error", "on_refused"])
def test_other_words_are_refused(field: str) -> None:
    with pytest.raises(errors.ConfigError, match=f"reward.{field}='drop'"):
        RewardConfig(**{field: "drop"}).validate()
