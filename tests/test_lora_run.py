"""A run that trains adapters: what it changes and keeps, that it is exact, and that a policy comes of it."""

import functools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rlvr import adaptation, errors, fingerprint, parts, trainer
from rlvr.checks import validate
from rlvr.config import ExperimentConfig
from rlvr.mesh import MeshConfig, make_mesh
from rlvr.policy import lora
from rlvr.policy.lora import LoraConfig
from rlvr.policy.transformer import Policy
from rlvr.policy_folder import load_adapters, load_merged_params, load_policy, save_policy
from rlvr.text.tokenizer import ByteTokenizer
from tests import tiny

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes

FLAGS = (
    "--config.lora.rank=4",
    "--config.lora.alpha=16",
    '--config.lora.targets=("attention/out","moe/up:3","mlp/up")',
)
LORA = LoraConfig(rank=4, alpha=16.0, targets=("attention/out", "moe/up:3", "mlp/up"))
POLICY = Policy(tiny.make_config().policy)


def make_base(folder: Path, seed: int) -> Path:
    """A policy folder of random parameters."""
    save_policy(folder, POLICY.config, jax.jit(POLICY.init)(jax.random.key(seed)), ByteTokenizer())
    return folder


@functools.cache
def base() -> Path:
    return make_base(tiny.session_folder() / "lora-base", 5)


def flags() -> tuple[str, ...]:
    return (*FLAGS, f"--config.checkpoint={base()}")


def make_config(checkpoint: Path, **options: Any) -> ExperimentConfig:
    config = tiny.make_config()
    config.checkpoint, config.lora = str(checkpoint), LoraConfig(**(vars(LORA) | options))
    return config


@functools.cache
def whole_run() -> Path:
    """The workdir of an uninterrupted run; to be read only."""
    workdir = tiny.session_folder() / "lora"
    done = tiny.launch(workdir, *flags())
    assert done.returncode == 0, done.stderr
    return workdir


def count(tree: Any) -> int:
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))


def test_it_learns_and_its_reference_is_where_the_rl_began() -> None:
    rows = tiny.read_metrics(whole_run())
    warm, rl = rows[: tiny.WARM_STEPS], rows[tiny.WARM_STEPS :]
    assert warm[-1]["loss/supervised"] < warm[0]["loss/supervised"] - 0.05
    assert all(row["optimizer/grad_norm"] > 0 and row["optimizer/skipped"] == 0 for row in rows)
    assert all(0 < row["gap/max"] <= 5e-5 for row in rl)  # merged at sampling, beside in training
    assert rl[0]["kl/start"] == pytest.approx(0, abs=1e-9) and rl[3]["kl/start"] > 1e-6


def test_what_is_saved_is_the_adapters() -> None:
    workdir = whole_run()
    adapted = adaptation.read(workdir)
    assert adapted is not None and adapted.lora == LORA and adapted.base == str(base())
    adapters = load_adapters(workdir, adapted, POLICY.config, None)
    # Two layers of out: 4 heads of 6, rank 4, D 16. A dense up: F 32. Experts' up: 4 of them, rank 3, F 24.
    assert count(adapters) == 2 * (4 * 6 * 4 + 4 * 16) + (16 * 4 + 4 * 32) + 4 * (16 * 3 + 3 * 24)
    assert fingerprint.hash_params(adapters) == tiny.read_result(workdir)["params_sha256"]
    with ocp.StandardCheckpointer() as checkpointer:
        moments = checkpointer.metadata(workdir / "checkpoints" / "10" / "opt_state").item_metadata
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(moments.tree)]
    assert sum(size for size in sizes if size > 1) == 2 * count(adapters)


def test_its_workdir_is_the_merged_policy() -> None:
    workdir, start = whole_run(), load_policy(base())
    adapted = adaptation.read(workdir)
    assert adapted is not None
    loaded = load_policy(workdir)
    merged = lora.merge(start.params, load_adapters(workdir, adapted, POLICY.config, None), LORA.alpha)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), loaded.params, merged)
    changed = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a != b))), loaded.params, start.params)
    named = {jax.tree_util.keystr(p, simple=True, separator="/") for p, c in leaves(changed) if c}
    assert named == {"layer_0/attention/out", "layer_1/attention/out", "layer_0/mlp/up", "layer_1/moe/up"}
    # Another run may start from it; its base is then the merged policy.
    mesh = make_mesh(MeshConfig())
    again = parts.initial_params(make_config(workdir), POLICY, mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, merged)


def leaves(tree: Any) -> list[Any]:
    return jax.tree_util.tree_leaves_with_path(tree)


def test_evaluating_the_workdir_gives_what_the_run_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "launch.evaluate", f"--checkpoint={whole_run()}", f"--config={tiny.CONFIG}",
            f"--output={tmp_path}",
        ],
        env=tiny.environment(),
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result.json").read_text())["eval"] == tiny.read_result(whole_run())["eval"]


def test_killed_and_resumed(tmp_path: Path) -> None:
    """In the RL, whose optimizer state and reference are the adapters'."""
    workdir = tmp_path / "run"
    process = tiny.start(workdir, *flags())
    try:
        assert tiny.wait_until(lambda: tiny.lines(workdir) >= 7, [process]), tiny.finish(process)
    finally:
        process.kill()
        tiny.finish(process)
    assert not (workdir / "result.json").exists()
    again = tiny.launch(workdir, *flags())
    assert again.returncode == 0, again.stderr
    assert "resuming at step" in again.stderr
    assert tiny.outcome(workdir) == tiny.outcome(whole_run())


def test_sampling_beside_is_sampling_merged_until_the_adapters_differ_from_zero(tmp_path: Path) -> None:
    results = {}
    with tiny.runs_in_process():
        for rollout in ("beside", "merged"):
            config = make_config(base(), rollout=rollout)
            config.warm_start.steps, config.steps, config.evaluation.interval = 0, 2, 2
            results[rollout] = trainer.train(config, tmp_path / rollout)
            rows = tiny.read_metrics(tmp_path / rollout)
            assert all(row["gap/max"] <= 5e-5 for row in rows)
            assert rows[0]["kl/start"] == pytest.approx(0, abs=1e-9)
    first = [tiny.timeless(tiny.read_metrics(tmp_path / name))[0] for name in results]
    assert first[0] == first[1]
    start = {name: load_merged_params(tmp_path / name, POLICY.config, None) for name in results}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), start["beside"], start["merged"])


def test_another_base_is_refused(tmp_path: Path) -> None:
    """Whoever reads the adapters: the run that would go on, or a launcher that would use its policy."""
    workdir = tmp_path / "run"
    shutil.copytree(whole_run(), workdir)
    own = make_base(tmp_path / "base", 6)  # as if the policy there had been imported anew
    record = json.loads((workdir / "lora.json").read_text()) | {"base": str(own)}
    (workdir / "lora.json").write_text(json.dumps(record))
    message = r"the adapters in .*run were trained beside other parameters than .*: their sha256 was .*, it is .*"
    with pytest.raises(errors.WeightsError, match=message):
        load_policy(workdir)
    shutil.rmtree(own)
    with pytest.raises(errors.WeightsError, match=r"holds adapters of the policy at .*base, which is not there: put"):
        load_policy(workdir)
    with pytest.raises(errors.WeightsError, match=message):
        adaptation.write(workdir, adaptation.Adaptation(LORA, str(base()), "0" * 64))
    (workdir / "metrics.jsonl").unlink()  # no step was taken: nothing depends on the other base
    adaptation.write(workdir, adaptation.Adaptation(LORA, str(base()), record["base_sha256"]))
    assert fingerprint.hash_params(load_policy(workdir).params) == fingerprint.hash_params(
        load_policy(whole_run()).params
    )
    (workdir / "lora.json").write_text('{"base": 3}')
    with pytest.raises(errors.WeightsError, match=r"lora\.json is damaged: KeyError"):
        load_policy(workdir)


def test_a_checkpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(errors.WeightsError, match=r"has no checkpoint of step 3 \(it has: \[.*10\]\)"):
        load_policy(whole_run(), step=3)
    with pytest.raises(errors.WeightsError, match=r"lora-base has no checkpoint of step 3 \(it has: none\)"):
        load_policy(base(), step=3)


def test_configs_that_cannot_work() -> None:
    config = make_config(base())
    validate(config)
    config.checkpoint = ""
    with pytest.raises(errors.ConfigError, match=r"lora\.rank=4 needs a checkpoint"):
        validate(config)
    config = make_config(base(), targets=("shared/up",))
    with pytest.raises(errors.ConfigError, match=r"lora\.targets='shared/up' is not known"):
        validate(config)
    config = make_config(base())
    config.policy.selection_bias, config.objective.bias_rate = True, 0.1
    with pytest.raises(errors.ConfigError, match=r"objective\.bias_rate=0\.1 moves selection biases, but lora\.rank=4"):
        validate(config)
