"""Writes report.html of a run, finished or not:

python -m launch.report --workdir=DIR
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch import cli
from rlvr import report

_WORKDIR = cli.define_workdir("Folder of the run.")


def main(argv: Sequence[str]) -> None:
    cli.refuse_arguments(argv)
    print(report.write_report(Path(_WORKDIR.value)))


if __name__ == "__main__":
    cli.run(main)
