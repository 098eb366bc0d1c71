"""Runs all points of a grid and compares them:

    python -m launch.grid --grid=configs/grids/NAME.py --workdir=DIR [--workers=N] [--shard=i/n] [--report_only]

The same command goes on after a stop or a kill; failed runs are tried again only with --retry_failed. DIR gets
`runs/POINT/seedN` (ordinary workdirs of launch.train), `ledger/`, `results.csv`, `runs.csv`, `verdicts.csv` and
`grid.html`. The last line is `RESULT {...}`; the exit status is 1 if a run of this shard failed or is left.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch import cli
from rlvr import errors
from rlvr.config import ExperimentConfig
from rlvr.grid import checking
from rlvr.grid.driver import Driver, share_processors
from rlvr.grid.page import Outcome, read_outcome, write_outcome
from rlvr.grid.spec import Run, load_grid

_GRID = flags.DEFINE_string("grid", None, "Grid file: a Python file with get_grid().", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the grid.", required=True)
_WORKERS = flags.DEFINE_integer("workers", 1, "Runs at a time; the processors are divided between them.", lower_bound=1)
_WORKER_ENV = flags.DEFINE_multi_string(
    "worker_env", [], "'NAME=VALUE NAME=VALUE' for the runs of one worker, once for each: which devices they use, say."
)
_SHARD = flags.DEFINE_string("shard", "0/1", "i/n, i from 0: every n-th run from the i-th on, for one of n machines.")
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Only writes the report of what is done.")
_RETRY_FAILED = flags.DEFINE_bool("retry_failed", False, "Runs that failed before are tried once more.")


def main(argv: Sequence[str]) -> int:
    """Checks everything, runs what is left of this shard, and writes the report."""
    del argv
    file, folder = Path(_GRID.value), Path(_WORKDIR.value)
    grid, base = load_grid(file)
    runs = grid.runs()
    configs = checking.resolve_runs(file, base, runs, _parse)
    checking.check_folders(folder, runs, configs)
    index, count = _read_shard(_SHARD.value)
    own = runs[index::count]
    if not _REPORT_ONLY.value:
        workers = share_processors(_WORKERS.value, _read_environments(_WORKER_ENV.value, _WORKERS.value))
        folder.mkdir(parents=True, exist_ok=True)
        # Seeds of a point, and often points, are the same programs: they are compiled once.
        environment = {"JAX_COMPILATION_CACHE_DIR": str((folder / "compiled").resolve())} | os.environ
        driver = Driver(
            folder,
            lambda run, workdir: _command(base, run, workdir),
            workers,
            environment=environment,
            retry_failed=_RETRY_FAILED.value,
            say=_say,
        )
        driver.drive(own)
    outcome = read_outcome(grid, base, folder)
    print(write_outcome(outcome, file.stem, folder))
    cli.print_result(_summarize(outcome))
    return int(any(outcome.records[run.name].state != "done" for run in own))


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
