"""The reference: fixed, following, absent; and runs whose reference and KL coefficient have a state."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import checkpoint, errors, trainer
from rlvr.algo.kl import ReferenceConfig, adapt_kl_coef
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.checks import validate
from rlvr.config import ExperimentConfig
from rlvr.reference import Reference
from tests import tiny

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes


class FakeLearner:
    """Parameters are one number, which is also every log-prob."""

    def abstract(self) -> Any:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return SimpleNamespace(params={"x": jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding)})

    def score(self, params: Any, rows: Any) -> list[np.ndarray]:
        return [np.full(2, params["x"]) for _ in rows]


def make_reference(folder: Path, **fields: Any) -> Reference:
    if not folder.exists():
        checkpoint.save_params(folder, {"x": jnp.float32(1.0)})
    return Reference(ReferenceConfig(**fields), FakeLearner(), folder)  # type: ignore[arg-type]


def value(reference: Reference) -> float:
    scores = reference.score([None])  # type: ignore[list-item]
    assert scores is not None
    return float(scores[0][0])


def test_a_synced_reference_moves_when_it_is_due(tmp_path: Path) -> None:
    reference = make_reference(tmp_path / "start", update="synced", interval=2, alpha=0.75)
    assert reference.moved() == {}
    seen = []
    for rl_step, policy in enumerate((5.0, 9.0, 100.0, 11.0)):
        reference.follow({"x": jnp.float32(policy)}, rl_step)
        seen.append(value(reference))
    # 3/4 of the policy after steps 1 and 3: 0.75 * 9 + 0.25 * 1 = 7, 0.75 * 11 + 0.25 * 7 = 10.
    assert seen == [1.0, 7.0, 7.0, 10.0]
    again = make_reference(tmp_path / "start", update="synced", interval=2, alpha=0.75)
    again.resume(reference.moved())
    assert value(again) == 10.0 and reference.metric == "kl/reference"


def test_a_fixed_reference_stays(tmp_path: Path) -> None:
    reference = make_reference(tmp_path / "start", interval=1)
    reference.follow({"x": jnp.float32(5.0)}, 0)
    assert value(reference) == 1.0 and reference.moved() == {} and reference.metric == "kl/start"


def test_the_coefficient_follows_its_target() -> None:
    """By hand: 32 samples of a horizon of 100 move it by 0.2 * 0.32 at most, and less near the target."""
    config = ObjectiveConfig(kl="k2", kl_coef=0.5, kl_target=0.1, kl_horizon=100.0)
    assert adapt_kl_coef(0.5, 7.0, 32, config) == pytest.approx(0.5 * 1.064)
    assert adapt_kl_coef(0.5, 0.0, 32, config) == pytest.approx(0.5 * 0.936)
    assert adapt_kl_coef(0.5, 0.11, 32, config) == pytest.approx(0.5 * 1.032)
    assert adapt_kl_coef(0.5, 0.1, 32, config) == 0.5
    assert adapt_kl_coef(0.5, 7.0, 32, ObjectiveConfig(kl="k2", kl_coef=0.5)) == 0.5


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"reference": ReferenceConfig("sync")},
            "objective.reference.update='sync' is not known; did you mean 'synced'",
        ),
        ({"reference": ReferenceConfig(interval=0)}, "objective.reference.interval=0"),
        ({"reference": ReferenceConfig(alpha=0.0)}, "objective.reference.alpha=0.0"),
        ({"reference": ReferenceConfig("synced")}, "'synced' with objective.kl='none': nothing would look"),
        ({"reference": ReferenceConfig("absent"), "kl": "k2", "kl_coef": 0.1}, "'absent': there is nothing to take it"),
        ({"kl_target": 0.1}, "objective.kl_target=0.1 with objective.kl='none'"),
        ({"kl_horizon": 0.5}, "objective.kl_horizon=0.5"),
        ({"kl": "k2", "kl_coef": 0.1, "kl_target": 0.1, "kl_horizon": 3.0}, "kl_horizon=3 is too short .*16 sequences"),
    ],
)
def test_what_cannot_work_is_refused(fields: dict[str, Any], words: str) -> None:
    config = tiny.make_config(moe=False)
    config.objective = ObjectiveConfig(**fields)
    with pytest.raises(errors.ConfigError, match=words):
        validate(config)


def make_config(objective: ObjectiveConfig) -> ExperimentConfig:
    config = dataclasses.replace(tiny.make_config(moe=False), steps=4, objective=objective)
    config.warm_start.steps, config.evaluation.interval = 0, 2
    return config


def test_a_run_with_a_synced_reference_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(
        ObjectiveConfig(
            aggregation="token_mean",
            kl="k2",
            kl_coef=0.5,
            kl_target=0.01,
            kl_horizon=40.0,
            reference=ReferenceConfig("synced", interval=2, alpha=1.0),
        )
    )
    stops: list[int] = []

    @contextlib.contextmanager
    def stop_signal() -> Any:
        limit = stops.pop(0) if stops else 99
        yield lambda: tiny.lines(tmp_path / "parts") >= limit

    monkeypatch.setattr(trainer, "stop_signal", stop_signal)
    with tiny.runs_in_process():
        trainer.train(config, tmp_path / "whole")
        stops[:] = [1, 3]  # before the first update of the reference, and after it
        while trainer.train(config, tmp_path / "parts") is None:
            pass
    assert not stops
    assert tiny.outcome(tmp_path / "parts") == tiny.outcome(tmp_path / "whole")
    rows = tiny.read_metrics(tmp_path / "whole")
    kls = [row["kl/reference"] for row in rows]
    # The first step samples from the reference itself, and so does the one after the update.
    assert kls[0] == pytest.approx(0, abs=1e-9) and kls[2] == pytest.approx(0, abs=1e-9)
    assert kls[1] > 1e-6 and kls[3] > 1e-6
    coef = config.objective.kl_coef
    for row, kl in zip(rows, kls, strict=True):
        assert row["optimizer/kl_coef"] == pytest.approx(coef, rel=1e-6)
        coef = adapt_kl_coef(coef, kl, 16, config.objective)
    assert coef != config.objective.kl_coef
    for step, held in ((1, False), (2, True), (4, True)):
        folder = tmp_path / "parts" / "checkpoints" / str(step) / "reference"
        assert folder.exists() == held or not folder.parent.exists()


def test_an_absent_reference_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError("a reference was loaded")

    monkeypatch.setattr(checkpoint, "load_tree", refuse)
    config = make_config(ObjectiveConfig(aggregation="token_mean", reference=ReferenceConfig("absent")))
    config.steps = 2
    with tiny.runs_in_process():
        trainer.train(config, tmp_path / "run")
        assert not any(name.startswith("kl/s") for row in tiny.read_metrics(tmp_path / "run") for name in row)
        config.objective.reference = ReferenceConfig()
        with pytest.raises(AssertionError, match="was loaded"):
            trainer.train(config, tmp_path / "fixed")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 2
