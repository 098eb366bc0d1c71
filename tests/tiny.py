"""Experiments small enough that a whole run takes seconds, and the means to launch them as processes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from jax.sharding import AxisType

from rlvr import trainer
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.checkpoint import CheckpointConfig
from rlvr.config import EvaluationConfig, ExperimentConfig, RolloutConfig, WarmStartConfig
from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import AXES
from rlvr.policy.config import PolicyConfig
from rlvr.rollout.config import EngineConfig
from rlvr.verifiers.pool import VerifierConfig

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "tests/configs/tiny.py"
SUMS = ROOT / "tests" / "configs" / "sums"
WARM_STEPS, STEPS = 4, 6

# What differs between two runs of one config: how long things took, and the process's memory.
_TIMES = re.compile(r"time/|memory/|wall_s$|rollout/tokens_per_s$|verify/seconds_max$")


def make_config(*, moe: bool = True) -> ExperimentConfig:
    """A policy of 2 layers (the second a mixture) on small sums; every batch divides over 8 devices.

    The reward is the share of digits in a completion, so that every step has some and none has all of it.
    """
    return ExperimentConfig(
        name="tiny",
        steps=STEPS,
        sample_interval=2,
        watchdog_s=150,  # before the tests' own limits, and with the stacks
        policy=PolicyConfig(
            dim=16,
            layers=2,
            query_heads=4,
            kv_heads=2,
            head_size=6,
            hidden=32,
            moe_layers=(1,) if moe else (),
            experts=4,
            experts_per_token=2,
            expert_hidden=24,
        ),
        data=DataConfig(tasks=(TaskSetConfig(source="jsonl", name="sums", path=str(SUMS), eval_size=8),)),
        engine=EngineConfig(slots=8, max_prompt_tokens=6, max_new_tokens=5, prefill_rows=8, decode_steps=2),
        rollout=RolloutConfig(prompts=4, group_size=4),
        objective=ObjectiveConfig(aggregation="token_mean"),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        update=UpdateConfig(row_tokens=32, micro_tokens=64, logprob_chunk=64),
        warm_start=WarmStartConfig(steps=WARM_STEPS, rows=16, optimizer=OptimizerConfig(learning_rate=1e-2)),
        evaluation=EvaluationConfig(interval=3),
        checkpoints=CheckpointConfig(interval=2, keep=2, keep_best=1),
        verifiers=VerifierConfig(workers=1),
    )


@functools.cache
def session_folder() -> Path:
    """A folder for what the tests of one session share; removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="rlvr-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def reference_run() -> Path:
    """The workdir of an uninterrupted run of the tiny config on one device; to be read only."""
    workdir = session_folder() / "reference"
    done = launch(workdir)
    assert done.returncode == 0, done.stderr
    (session_folder() / "reference.out").write_text(done.stdout)
    return workdir


@functools.cache
def dense_run() -> Path:
    """The workdir of an uninterrupted run of the dense tiny config in this process; to be read only."""
    workdir = session_folder() / "dense"
    with runs_in_process():
        trainer.train(make_config(moe=False), workdir)
    return workdir


def environment(devices: int = 1, *, compiled: bool = True) -> dict[str, str]:
    """The environment of a launched run with so many simulated CPU devices; `compiled`: whether it may use what others
    of the session have compiled."""
    given = {name: value for name, value in os.environ.items() if compiled or name != "JAX_COMPILATION_CACHE_DIR"}
    return given | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }


@contextlib.contextmanager
def runs_in_process() -> Iterator[None]:
    """Lets runs in this process use one of its devices only: that is much faster."""
    one = jax.make_mesh((1,) * len(AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:1])
    with mock.patch.object(trainer, "make_mesh", lambda config: one):
        yield


def open_files(folder: Path, pattern: str = "*") -> list[Path]:
    """Returns the files below a folder that this process holds open."""
    held = [Path(os.path.realpath(link)) for link in Path("/proc/self/fd").iterdir()]
    return [path for path in held if path.is_relative_to(folder.resolve()) and path.match(pattern)]


def command(workdir: Path, *arguments: str, config: str = CONFIG) -> list[str]:
    """The command line of a run; `arguments` are further flags."""
    return [sys.executable, "-m", "launch.train", f"--config={config}", f"--workdir={workdir}", *arguments]


def launch(
    workdir: Path, *arguments: str, config: str = CONFIG, devices: int = 1, compiled: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m launch.train` to its end."""
    return subprocess.run(
        command(workdir, *arguments, config=config),
        env=environment(devices, compiled=compiled),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def start(workdir: Path, *arguments: str, config: str = CONFIG, devices: int = 1) -> subprocess.Popen[str]:
    """Starts `python -m launch.train`; its output goes to files beside the workdir (a full pipe would stop it)."""
    output = workdir.with_name(f"{workdir.name}-{time.monotonic_ns()}.log").open("w+")
    process = subprocess.Popen(
        command(workdir, *arguments, config=config),
        env=environment(devices),
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )
    process.stdout = output
    return process


def finish(process: subprocess.Popen[str], timeout: float = 240) -> str:
    """Waits for a run begun by `start` and returns what it printed."""
    try:
        process.wait(timeout)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.seek(0)
        output = process.stdout.read()
        process.stdout.close()
    return output


def wait_until(condition: Callable[[], bool], processes: Sequence[subprocess.Popen[str]], timeout: float = 240) -> bool:
    """Polls until the condition holds; False if a process ended before."""
    deadline = time.monotonic() + timeout
    while not condition():
        if any(process.poll() is not None for process in processes):
            return False
        if time.monotonic() > deadline:
            for process in processes:
                process.send_signal(signal.SIGKILL)
            raise AssertionError(f"not within {timeout} s: " + finish(processes[0]))
        time.sleep(0.002)
    return True


def lines(workdir: Path) -> int:
    """The number of whole lines of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def timeless(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without what differs between two runs of one config."""
    return [{name: value for name, value in row.items() if not _TIMES.search(name)} for row in rows]


def read_result(workdir: Path) -> dict[str, Any]:
    """What result.json holds."""
    return json.loads((workdir / "result.json").read_text())


def outcome(workdir: Path) -> dict[str, Any]:
    """Everything that must be the same in every run of one config, however often it was stopped."""
    result = read_result(workdir)
    same = ("config_hash", "steps", "params_sha256", "rollout_sha256", "eval", "eval_start")
    samples = [json.loads(line) for line in (workdir / "samples.jsonl").read_text().splitlines()]
    return {
        **{name: result[name] for name in same},
        "metrics": timeless(read_metrics(workdir)),
        "samples": [{**row, "detail": ""} for row in samples],
    }
