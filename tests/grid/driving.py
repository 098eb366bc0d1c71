"""A driver over fake runs, for the tests and, as a program, for those that kill it: python driving.py FOLDER PAUSE."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlvr.grid.driver import Driver, Worker
from rlvr.grid.spec import Point, Run

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_run.py")
STEPS = 5
RUNS = [Run(Point({"objective.clip_high": value}), seed) for seed in (0, 1) for value in (0.2, 0.3)]


def make_driver(
    folder: Path,
    *,
    modes: Mapping[Run | str, str] | None = None,
    pause: float = 0.0,
    workers: Sequence[Worker] = (Worker(),),
    retry_failed: bool = False,
    said: list[str] | None = None,
) -> Driver:
    """A driver of fake runs; `modes` by the title of a run."""

    def command(run: Run, workdir: Path) -> list[str]:
        mode = (modes or {}).get(run.title)
        return [sys.executable, str(FAKE), str(workdir), str(STEPS), str(pause), *([mode] if mode else [])]

    return Driver(
        folder,
        command,
        workers,
        environment={"EVERYWHERE": "yes"},
        retry_failed=retry_failed,
        say=(said if said is not None else []).append,
    )


if __name__ == "__main__":
    make_driver(Path(sys.argv[1]), pause=float(sys.argv[2])).drive(RUNS)
