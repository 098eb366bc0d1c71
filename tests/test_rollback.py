"""Runs that go wrong: back to a checkpoint from before, on with smaller steps, and the same however often stopped."""

import contextlib
import dataclasses
import itertools
import json

import pytest

from rlvr import errors, rollback, trainer
from rlvr.config import RollbackConfig
from rlvr.learner.learner import Learner
from tests import tiny

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes


@pytest.fixture(autouse=True, scope="module")
def runs_in_process():
    with tiny.runs_in_process():
        yield


def make_config(**fields):
    """Steps so large that the first ones destroy what the warm start taught."""
    config = dataclasses.replace(tiny.make_config(moe=False), steps=8)
    config.optimizer.learning_rate = 1.0
    config.warm_start.steps = 30
    config.rollback = RollbackConfig(**{"limit": 2, "shrink": 1e-4, "reward_drop": 0.3, "window": 1} | fields)
    return config


def read_rollbacks(workdir):
    return json.loads((workdir / "rollbacks.json").read_text())


def test_a_collapse_is_taken_back(tmp_path, monkeypatch):
    config, run = make_config(), tmp_path / "run"
    trainer.train(config, tmp_path / "whole")
    (back,) = read_rollbacks(tmp_path / "whole")
    assert back["reason"].startswith("the mean reward of 1 steps fell to ") and 30 <= back["to"] <= back["since"]
    rows = tiny.read_metrics(tmp_path / "whole")
    assert [row["step"] for row in rows] == list(range(38))
    assert [row["optimizer/lr"] for row in rows[back["to"] :]] == pytest.approx([1e-4] * (38 - back["to"]))
    rewards = [row["reward/mean"] for row in rows[30:]]
    assert min(rewards) > max(rewards) - 0.3
    # Stopped before the collapse, right after the way back, and later.
    left = []

    @contextlib.contextmanager
    def stop_signal():
        condition, calls = left.pop(0) if left else (lambda: False), itertools.count()
        yield lambda: condition() and next(calls) >= 0

    monkeypatch.setattr(trainer, "stop_signal", stop_signal)
    gone_back = run / "rollbacks.json"
    left[:] = [lambda: tiny.lines(run) >= 20, gone_back.exists, lambda: tiny.lines(run) >= 36]
    stops = 0
    while trainer.train(config, run) is None:
        stops += 1
    assert stops == 3
    assert tiny.outcome(run) == tiny.outcome(tmp_path / "whole")
    assert read_rollbacks(run) == read_rollbacks(tmp_path / "whole")


def test_without_a_way_back_it_is_an_error(tmp_path):
    with pytest.raises(errors.Setback, match=r"the mean reward of 1 steps fell .* \(rollback.reward_drop=0.3\)"):
        trainer.train(make_config(limit=0), tmp_path)
    assert not (tmp_path / "rollbacks.json").exists() and not (tmp_path / "result.json").exists()


def test_updates_that_are_not_finite_are_taken_back_as_often_as_allowed(tmp_path, monkeypatch):
    config = make_config(reward_drop=0.0, shrink=0.5)
    config.optimizer.learning_rate = 1e-3
    config.checkpoints.keep = 20
    read, raised = Learner._read, []

    def broken(self, seen):
        if tiny.lines(tmp_path / "run") >= 34:
            raised.append(1)
            raise FloatingPointError("5 updates in a row had non-finite gradients")
        return read(self, seen)

    monkeypatch.setattr(Learner, "_read", broken)
    with pytest.raises(errors.Setback, match="5 updates in a row"):
        trainer.train(config, tmp_path / "run")
    assert len(raised) == 3
    backs = read_rollbacks(tmp_path / "run")
    # Five updates and the one whose metrics were not read yet.
    assert [(back["since"], back["to"]) for back in backs] == [(30, 30), (30, 30)]
    assert rollback.slow_down(config, len(backs)).optimizer.learning_rate == pytest.approx(2.5e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"limit": -1}, "rollback.limit=-1"),
        ({"shrink": 0.0}, "rollback.shrink=0.0"),
        ({"reward_drop": -0.1}, "rollback.reward_drop=-0.1"),
        ({"window": 0}, "rollback.window=0"),
    ],
)
def test_what_cannot_work_is_named(fields, message):
    with pytest.raises(errors.ConfigError, match=message):
        RollbackConfig(**fields).validate()


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "rollbacks.json").write_text("[{")
    with pytest.raises(errors.WorkdirError, match=r"rollbacks.json is damaged"):
        rollback.read(tmp_path)
