"""What has become of every run of a grid: one small file a run, and a lock that the kernel lets go of.

A run is worked at by whoever holds its lock. The lock is inherited by the run's own process: it stays taken while that
lives, also where its driver was killed. A record that says "running" beside a free lock is therefore of a run whose
processes are gone: it is pending again, and resumes from its checkpoints.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from pathlib import Path

from rlvr import errors
from rlvr.grid.spec import Run
from rlvr.workdir import write_json

STATES = ("pending", "running", "failed", "done")


@dataclasses.dataclass
class Record:
    """A run's state.

    Attributes:
        state: one of `STATES`.
        reason: of a failure; of a pending run, what stopped it.
        attempts: how often it was started.
        seconds: wall time of the attempts that ended.
    """

    state: str = "pending"
    reason: str = ""
    attempts: int = 0
    seconds: float = 0.0


class Ledger:
    """The records in `folder/ledger`, of any number of drivers at once."""

    def __init__(self, folder: Path):
        self._folder = folder / "ledger"

    def log(self, run: Run) -> Path:
        """Where the output of all its attempts goes."""
        return self._path(run, "log")

    def claim(self, run: Run) -> int | None:
        """Takes a run's lock; None if somebody holds it. Closing the descriptor in every process lets go of it."""
        path = self._path(run, "lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def read(self, run: Run) -> Record:
        """Returns a run's record; one that says "running" where nobody is at it is pending.

        Raises:
            WorkdirError: the record is damaged.
        """
        record = self._load(run)
        if record.state != "running":
            return record
        descriptor = self.claim(run)
        if descriptor is None:
            return record
        try:
            return self.read_held(run)
        finally:
            os.close(descriptor)

    def read_held(self, run: Run) -> Record:
        """Like `read`, for the holder of the run's lock: a record that says "running" is of a process that is gone."""
        record = self._load(run)
        if record.state == "running":
            record = dataclasses.replace(record, state="pending", reason="its processes were killed")
        return record

    def _load(self, run: Run) -> Record:
        path = self._path(run, "json")
        try:
            record = Record(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return Record()
        except (ValueError, TypeError) as error:
            raise errors.WorkdirError(f"{path} is damaged ({error}); remove it: the run is then resumed") from error
        if record.state not in STATES:
            raise errors.WorkdirError(f"{path}: state {record.state!r} is none of {', '.join(STATES)}")
        return record

    def write(self, run: Run, record: Record) -> None:
        """Writes a run's record; only the holder of its lock may."""
        write_json(self._path(run, "json"), dataclasses.asdict(record))

    def _path(self, run: Run, suffix: str) -> Path:
        return self._folder / f"{run.name}.{suffix}"
