"""A grid's points as lanes of one program, against the same points one after another.

    python -m launch.bench grid --grid_points=16 --grid_steps=40

The points differ in learning rate, upper clip and seed. Three ways, each from nothing to the last line of the metrics,
compilation and the warm starts included, with an empty cache of compiled programs of its own:

    together       `launch.grid --one_program`: all points are lanes of one program
    one by one     `launch.grid --one_program --lanes=1`: one program after another; what is compiled is in the cache
    processes      `launch.grid`: each point is an ordinary run, one process after another

`--grid_processes` says how many of the points are run the third way (0: none); the time of all of them is that of those
times the share.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

from launch import cli
from launch.benches.workload import peak_gb
from rlvr import timing
from rlvr.checks import resolve
from rlvr.config import ExperimentConfig
from rlvr.grid.at_once import AtOnce
from rlvr.grid.measures import read_history
from rlvr.grid.spec import Point, Run

CONFIG = "configs/sums.py"
POINTS = flags.DEFINE_integer("grid_points", 16, "grid: points.", lower_bound=1)
STEPS = flags.DEFINE_integer("grid_steps", 40, "grid: steps of the RL of each.", lower_bound=1)
WARM = flags.DEFINE_integer("grid_warm_steps", 100, "grid: steps of the warm start of each.", lower_bound=1)
PROMPTS = flags.DEFINE_integer("grid_prompts", 32, "grid: prompts a step.", lower_bound=4)
PROCESSES = flags.DEFINE_integer("grid_processes", 2, "grid: points that are run as processes.", lower_bound=0)


def bench_grid() -> dict[str, Any]:
    """Runs the points in the three ways."""
    runs = [make_run(i) for i in range(POINTS.value)]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        together = run_lanes(folder / "together", runs, lanes=0)
        one_by_one = run_lanes(folder / "one_by_one", runs, lanes=1)
        rewards = [[read_reward(folder / way, run) for run in runs] for way in ("together", "one_by_one")]
        processes = run_processes(folder / "processes", runs[: PROCESSES.value]) * len(runs)
    seconds = {"together": together, "one by one": one_by_one} | ({"processes": processes} if PROCESSES.value else {})
    print(f"{'':14}{'seconds':>10}{'times':>8}")
    for way, taken in seconds.items():
        print(f"{way:14}{taken:10.1f}{taken / together:8.1f}")
    result = {"bench": "grid", "platform": jax.default_backend(), "points": len(runs), "steps": STEPS.value}
    for way, taken in seconds.items():
        name = way.replace(" ", "_")
        result |= {f"{name}_s": taken, f"{name}_times": taken / together}
    apart = max(abs(a - b) for a, b in zip(*rewards, strict=True))
    return result | {"largest_difference_of_rewards": apart, "peak_gb": peak_gb()}


def make_run(index: int) -> Run:
    """Returns a point with its seed."""
    overrides = {
        "steps": STEPS.value,
        "rollout.prompts": PROMPTS.value,
        "warm_start.steps": WARM.value,
        "evaluation.interval": STEPS.value,
        "optimizer.learning_rate": (2e-4, 4e-4, 8e-4, 1.6e-3)[index % 4],
        "objective.clip_high": (0.25, 0.28)[index // 4 % 2],
    }
    return Run(Point(overrides), index // 8)


def make_config(run: Run) -> ExperimentConfig:
    """Returns the config of a run."""
    return resolve(cli.parse_config(CONFIG, arguments(run)))


def arguments(run: Run) -> list[str]:
    """Returns the overrides of a run as flags."""
    return [f"--config.{name}={value}" for name, value in run.overrides().items()]


def run_lanes(folder: Path, runs: list[Run], lanes: int) -> float:
    """Runs points as lanes; returns the seconds."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    compilation_cache.reset_cache()
    try:
        with timing.timed() as took:
            configs = {run.name: make_config(run) for run in runs}
            AtOnce(folder, configs, lanes=lanes, retry_failed=False, say=lambda line: None).drive(runs)
        return took()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


def read_reward(folder: Path, run: Run) -> float:
    """Returns the mean reward of a run's last step."""
    return float(read_history(folder / "runs" / run.name).rows[-1]["reward/mean"])


def run_processes(folder: Path, runs: list[Run]) -> float:
    """Runs points as ordinary runs; returns the mean seconds of one."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    with timing.timed() as took:
        for run in runs:
            command = [sys.executable, "-m", "launch.train", f"--config={CONFIG}"]
            command += [f"--workdir={folder / run.name}", *arguments(run)]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return took() / max(len(runs), 1)
