"""Measures a part of the system against the machine's own ceiling, in the same process.

    python -m launch.bench NAME [--rounds=9] [--shape=smollm2_135m] [--dtype=float32] [--NAME_option=value ...]

NAME is one of the benches below, each in a file of `launch/benches` that says what it measures; the flags of a bench
begin with its name. Prints a table and, as the last line, JSON. What is compared is run in turn in every round, so
that a machine that changes its speed changes it for all; quote the ratios.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app

from launch import cli
from launch.benches.checkpoint import bench_checkpoint
from launch.benches.compile import bench_compile
from launch.benches.grid import bench_grid
from launch.benches.moe import bench_moe
from launch.benches.rollout import bench_rollout
from launch.benches.rows import bench_rows
from launch.benches.step import bench_step
from launch.benches.verify import bench_verify
from rlvr import errors

# Each prints its table and returns what the last line says.
BENCHES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "checkpoint": bench_checkpoint,
    "compile": bench_compile,
    "grid": bench_grid,
    "moe": bench_moe,
    "rollout": bench_rollout,
    "rows": bench_rows,
    "step": bench_step,
    "verify": bench_verify,
}


def main(argv: Sequence[str]) -> None:
    """Runs the bench that is named."""
    if len(argv) != 2:
        raise app.UsageError(f"name one bench (accepted: {', '.join(BENCHES)})")
    errors.check_choice("bench", argv[1], BENCHES)
    print(json.dumps(cli.shorten(BENCHES[argv[1]]())))


if __name__ == "__main__":
    cli.run(main)
