"""Runs that share a warm start are, step for step, the runs that make their own."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rlvr import trainer, warm_start
from rlvr.config import ExperimentConfig, config_hash
from tests import tiny


def make_config(shared: Path | str, **changes: Any) -> ExperimentConfig:
    config = tiny.make_config(moe=False)
    return dataclasses.replace(config, warm_start=dataclasses.replace(config.warm_start, shared=str(shared)), **changes)


def read_lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_second_run_begins_where_the_firsts_warm_start_ended(tmp_path: Path) -> None:
    """Bit for bit."""
    shared, alone = tmp_path / "warm", tiny.dense_run()
    with tiny.runs_in_process():
        trainer.train(make_config(shared, steps=1), tmp_path / "first")
        result = trainer.train(make_config(shared), tmp_path / "second")
    expected = json.loads((alone / "result.json").read_text())
    assert result is not None
    for name in ("config_hash", "steps", "params_sha256", "rollout_sha256", "eval", "eval_start"):
        assert result[name] == expected[name], name
    assert len(list(shared.iterdir())) == 1
    assert len(read_lines(tmp_path / "first")) == tiny.WARM_STEPS + 1
    seen, whole = read_lines(tmp_path / "second"), read_lines(alone)
    assert [row["step"] for row in seen] == list(range(tiny.WARM_STEPS, tiny.WARM_STEPS + tiny.STEPS))
    names = ("reward/mean", "loss/policy", "optimizer/grad_norm", "rollout/entropy")
    for own, other in zip(seen, whole[tiny.WARM_STEPS :], strict=True):
        assert [own[name] for name in names] == [other[name] for name in names]


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("objective.clip_high", 0.4, True),
        ("curriculum.sampler", "uniform", True),
        ("rollout.prompts", 8, True),
        ("steps", 9, True),
        ("update.minibatches", 2, True),
        ("optimizer.learning_rate", 1.0, True),
        ("seed", 1, False),
        ("warm_start.rows", 8, False),
        ("warm_start.optimizer.learning_rate", 1.0, False),
        ("rollout.temperature", 0.5, False),
        ("policy.dim", 32, False),
        ("data.seed", 3, False),
        ("update.micro_tokens", 128, False),
        ("mesh.fsdp", 2, False),
        ("lora.rank", 2, False),
    ],
)
def test_what_a_warm_start_depends_on(field: str, value: Any, same: bool) -> None:
    config = make_config("warm")
    before = warm_start.shared_folder(config)
    *path, name = field.split(".")
    owner: Any = config
    for part in path:
        owner = getattr(owner, part)
    assert getattr(owner, name) != value
    setattr(owner, name, value)
    assert (warm_start.shared_folder(config) == before) is same


def test_nothing_is_shared_unless_asked() -> None:
    assert warm_start.shared_folder(make_config("")) is None
    none = make_config("warm")
    none.warm_start.steps = 0
    assert warm_start.shared_folder(none) is None


def test_where_it_is_shared_is_not_what_a_run_is() -> None:
    assert config_hash(make_config("here")) == config_hash(make_config("there"))
