"""Runs all points of a grid and compares them:

    python -m launch.grid --grid=configs/grids/NAME.py --workdir=DIR [--workers=N] [--shard=i/n] [--report_only]
    python -m launch.grid --grid=configs/grids/NAME.py --workdir=DIR --one_program [--lanes=N]

The same command goes on after a stop or a kill; failed runs are tried again only with --retry_failed. DIR gets
`runs/POINT/seedN` (ordinary workdirs of launch.train), `ledger/`, `results.csv`, `runs.csv`, `verdicts.csv` and
`grid.html`. With --one_program the runs of tiny policies are lanes of a few compiled programs instead of processes
(`rlvr.program`); a point that cannot be one is refused by name. The last line is `RESULT {...}`; the exit status is 1
if a run of this shard failed or is left.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from launch import cli
from rlvr import errors
from rlvr.config import ExperimentConfig
from rlvr.grid import checking, guard
from rlvr.grid.driver import Driver, share_processors, stop_signals
from rlvr.grid.page import Outcome, read_outcome, write_outcome
from rlvr.grid.spec import Run, load_grid

_GRID = flags.DEFINE_string("grid", None, "Grid file: a Python file with get_grid().", required=True)
_WORKDIR = cli.define_workdir("Folder of the grid.")
_WORKERS = flags.DEFINE_integer("workers", 1, "Runs at a time; the processors are divided between them.", lower_bound=1)
_WORKER_ENV = flags.DEFINE_multi_string(
    "worker_env", [], "'NAME=VALUE NAME=VALUE' for the runs of one worker, once for each: which devices they use, say."
)
_ONE_PROGRAM = flags.DEFINE_bool("one_program", False, "Runs are lanes of compiled programs, not processes.")
_LANES = flags.DEFINE_integer("lanes", 0, "With --one_program: runs of a program, at most; 0 for all.", lower_bound=0)
_SHARD = flags.DEFINE_string("shard", "0/1", "i/n, i from 0: every n-th run from the i-th on, for one of n machines.")
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Only writes the report of what is done.")
_RETRY_FAILED = flags.DEFINE_bool("retry_failed", False, "Runs that failed before are tried once more.")


def main(argv: Sequence[str]) -> int:
    """Checks everything, runs what is left of this shard, and writes the report."""
    cli.refuse_arguments(argv)
    file, folder = Path(_GRID.value), Path(_WORKDIR.value)
    grid, base = load_grid(file)
    runs = grid.runs()
    configs = checking.resolve_runs(file, base, runs, _parse)
    checking.check_folders(folder, runs, configs)
    index, count = _read_shard(_SHARD.value)
    own = runs[index::count]
    if _ONE_PROGRAM.value:
        from rlvr.grid.at_once import share_groups

        own = share_groups(runs, configs, index, count)
    if not _REPORT_ONLY.value:
        folder.mkdir(parents=True, exist_ok=True)
        (_drive_at_once if _ONE_PROGRAM.value else _drive_processes)(folder, base, own, configs)
    outcome = read_outcome(grid, base, folder)
    print(write_outcome(outcome, file.stem, folder))
    cli.print_result(_summarize(outcome))
    return int(any(outcome.records[run.name].state != "done" for run in own))


def _drive_processes(folder: Path, base: str, runs: Sequence[Run], configs: Mapping[str, ExperimentConfig]) -> None:
    """Each run is a process of its own."""
    del configs
    workers = share_processors(_WORKERS.value, _read_environments(_WORKER_ENV.value, _WORKERS.value))
    # Seeds of a point, and often points, are the same programs: they are compiled once.
    environment = {"JAX_COMPILATION_CACHE_DIR": str((folder / "compiled").resolve())} | os.environ
    driver = Driver(
        folder,
        lambda run, workdir: [*_command(base, run, workdir), f"--config.warm_start.shared={folder.resolve() / 'warm'}"],
        workers,
        environment=environment,
        retry_failed=_RETRY_FAILED.value,
        say=_say,
    )
    driver.drive(runs)


def _drive_at_once(folder: Path, base: str, runs: Sequence[Run], configs: Mapping[str, ExperimentConfig]) -> None:
    """All runs are lanes of programs: in this process, or with several workers in one for each."""
    del base
    # Here: it imports what only a process that computes needs.
    from rlvr.grid.at_once import AtOnce, check_grid

    check_grid(runs, configs)
    if _WORKERS.value > 1:
        _drive_shares()
        return
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str((folder / "compiled").resolve()))
    AtOnce(folder, configs, lanes=_LANES.value, retry_failed=_RETRY_FAILED.value, say=_say).drive(runs)


def _drive_shares() -> None:
    """Runs this shard in processes, each with a shard of it and its share of the processors."""
    index, count = _read_shard(_SHARD.value)
    workers = share_processors(_WORKERS.value, _read_environments(_WORKER_ENV.value, _WORKERS.value))
    command = [sys.executable, "-m", "launch.grid", f"--grid={_GRID.value}", f"--workdir={_WORKDIR.value}"]
    command += ["--one_program", f"--lanes={_LANES.value}", f"--retry_failed={_RETRY_FAILED.value}"]
    with stop_signals(lambda: None) as stopped:
        children = []
        for place, worker in enumerate(workers):
            cpus = ",".join(map(str, worker.cpus))
            share = f"--shard={index + count * place}/{count * len(workers)}"
            children.append(
                subprocess.Popen(
                    [sys.executable, guard.__file__, str(os.getpid()), cpus, *command, share],
                    env={**os.environ, **worker.environment},
                    stdout=sys.stderr,  # the last line of the output is this process's
                    start_new_session=True,
                )
            )
        told = False
        while any(child.poll() is None for child in children):
            if stopped() and not told:
                told = True
                for child in children:
                    child.terminate()
            time.sleep(0.2)


def _say(line: str) -> None:
    print(line, flush=True)


def _arguments(overrides: Mapping[str, Any]) -> list[str]:
    return [f"--config.{name}={value}" for name, value in overrides.items()]


def _parse(base: str, overrides: Mapping[str, Any]) -> ExperimentConfig:
    """Applies overrides as the command line of launch.train does."""
    return cli.parse_config(base, _arguments(overrides))


def _command(base: str, run: Run, workdir: Path) -> list[str]:
    train = [sys.executable, "-m", "launch.train", f"--config={base}", f"--workdir={workdir}"]
    return train + _arguments(run.overrides())


def _read_shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not index < count:
        raise errors.ConfigError(f"--shard={text}: i/n with 0 <= i < n is accepted, such as 0/4 to 3/4")
    return index, count


def _read_environments(texts: Sequence[str], workers: int) -> list[dict[str, str]]:
    if texts and len(texts) != workers:
        raise errors.ConfigError(f"--worker_env is given {len(texts)} times for --workers={workers}: once for each")
    parts = [shlex.split(text) for text in texts]
    for part in itertools.chain(*parts):
        if not re.match(r"\w+=", part):
            raise errors.ConfigError(f"--worker_env: {part!r} is not NAME=VALUE")
    return [dict(part.split("=", 1) for part in own) for own in parts]


def _summarize(outcome: Outcome) -> dict[str, Any]:
    verdicts = {verdict.hypothesis.text: verdict.answer for verdict in outcome.verdicts}
    return {"runs": outcome.counts(), "verdicts": verdicts}


if __name__ == "__main__":
    cli.run(main)
