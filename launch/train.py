"""Trains a policy: python -m launch.train --config=configs/quickstart.py --workdir=DIR [--config.a.b=value ...].

The same command resumes a run that was stopped or killed. The last line is `RESULT {...}`, the content of
DIR/result.json; DIR/report.html is for people.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from absl import flags

from launch import cli
from rlvr import watchdog
from rlvr.mesh import initialize_distributed

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir("Folder of the run.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", 'host:port of process 0 of several; "auto" where the cluster knows (Cloud TPU, Slurm).'
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "Number of processes, with --coordinator=host:port.")
_PROCESS_INDEX = flags.DEFINE_integer("process_index", 0, "This process, with --coordinator=host:port.")
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """Runs or resumes the experiment."""
    cli.refuse_arguments(argv)
    watchdog.arm(_CONFIG.value.watchdog_s)
    initialize_distributed(_COORDINATOR.value, _PROCESSES.value, _PROCESS_INDEX.value)
    from rlvr.trainer import train  # after the processes are joined: importing it may touch the devices

    with _without_farewell() if _COORDINATOR.value else contextlib.nullcontext():
        result = train(_CONFIG.value, Path(_WORKDIR.value))
    if result is not None and jax.process_index() == 0:
        cli.print_result(result)


@contextlib.contextmanager
def _without_farewell() -> Iterator[None]:
    """Ends one of several processes at once where it fails, with exit status 1.

    Before it exits JAX waits for the others, which wait for it in a collective, and then aborts them all: whoever
    started them would find every one of them ended by a signal, which is tried again, and not the error.
    """
    try:
        yield
    except Exception as error:
        cli.show_error(error)
        sys.stdout.flush()
        os._exit(1)


if __name__ == "__main__":
    cli.run(main)
