"""Drives the runs of a grid to their ends: each in a process of its own, several at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from rlvr.grid import guard
from rlvr.grid.ledger import Ledger, Record
from rlvr.grid.spec import Run
from rlvr.writers import format_duration

_POLL_S = 0.1
_POLL_CLAIMS_S = 1.0  # between attempts at runs that somebody else holds
_LOG_TAIL = 20_000  # bytes of a log that are searched for the reason of a failure


@dataclasses.dataclass(frozen=True)
class Worker:
    """A place where one run at a time is at work.

    Attributes:
        cpus: processors its runs may use; empty for all.
        environment: added to that of its runs.
    """

    cpus: tuple[int, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def share_processors(workers: int, environments: Sequence[Mapping[str, str]] = ()) -> list[Worker]:
    """Returns workers between which this process's processors are divided; undivided if they are fewer.

    Args:
        environments: one for each worker, or none.
    """
    cpus = sorted(os.sched_getaffinity(0))
    each = len(cpus) // workers if workers > 1 else 0
    return [
        Worker(tuple(cpus[i * each : (i + 1) * each]), environments[i] if environments else {}) for i in range(workers)
    ]


@dataclasses.dataclass
class _Child:
    """A run's process, the lock it shares with us, and where in the log its output starts."""

    run: Run
    record: Record
    process: subprocess.Popen[bytes]
    lock: int
    offset: int
    began: float


class Driver:
    """Works through runs; see `drive`.

    Args:
        folder: of the grid.
        command: the command line of a run, given its workdir.
        workers: how many run at once, and where.
        environment: of all runs.
        retry_failed: whether runs that failed before are tried once more.
        say: shown to the user, line by line.
    """

    def __init__(
        self,
        folder: Path,
        command: Callable[[Run, Path], list[str]],
        workers: Sequence[Worker],
        *,
        environment: Mapping[str, str],
        retry_failed: bool,
        say: Callable[[str], None],
    ):
        self._folder, self._command, self._workers = folder, command, workers
        self._environment, self._retry_failed, self._say = environment, retry_failed, say
        self._ledger = Ledger(folder)
        self._children: dict[int, _Child] = {}

    def drive(self, runs: Sequence[Run]) -> bool:
        """Runs all that are not done; those that another driver holds are waited for, and taken over if it dies.

        SIGTERM or SIGINT stops: the running ones save themselves, which may take a while; a second signal kills them.
        Either way the same grid goes on from there. To be called in the main thread.

        Returns:
            Whether it came to the end (failed runs included), not stopped.
        """
        left = list(runs)
        claims_at, told = 0.0, False
        with stop_signals(self._kill) as stopped:
            while (left or self._children) and not stopped():
                if self._settle_ended(stopping=False):
                    claims_at = 0.0
                free = [slot for slot in range(len(self._workers)) if slot not in self._children]
                if left and free and time.monotonic() >= claims_at:
                    left = self._start_some(left, free)
                    claims_at = time.monotonic() + _POLL_CLAIMS_S
                    if left and not self._children and not told:
                        self._say(f"waiting for {len(left)} runs that another driver, or what it left behind, works at")
                        told = True
                time.sleep(_POLL_S)
            for child in self._children.values():
                child.process.terminate()
            while self._children:
                self._settle_ended(stopping=True)
                time.sleep(_POLL_S)
            return not stopped()

    def _start_some(self, runs: Sequence[Run], free: Sequence[int]) -> list[Run]:
        """Starts runs in the free slots, in their order; returns those that are still to be looked at."""
        left, slots = [], list(free)
        for run in runs:
            if not slots:
                left.append(run)
                continue
            lock = self._ledger.claim(run)
            if lock is None:
                left.append(run)
                continue
            record = self._ledger.read_held(run)
            if record.state == "done" or (record.state == "failed" and not self._retry_failed):
                os.close(lock)
                continue
            self._start(run, record, lock, slots.pop(0))
        return left

    def _start(self, run: Run, record: Record, lock: int, slot: int) -> None:
        worker, log = self._workers[slot], self._ledger.log(run)
        resumed = record.attempts > 0
        record = dataclasses.replace(record, state="running", reason="", attempts=record.attempts + 1)
        self._ledger.write(run, record)
        workdir = self._folder / "runs" / run.name
        workdir.mkdir(parents=True, exist_ok=True)
        cpus = ",".join(map(str, worker.cpus))
        with log.open("ab") as output:
            offset = output.tell()
            process = subprocess.Popen(
                [sys.executable, guard.__file__, str(os.getpid()), cpus, *self._command(run, workdir)],
                env={**self._environment, **worker.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C is for the driver, which then stops its runs in good order
            )
        self._children[slot] = _Child(run, record, process, lock, offset, time.monotonic())
        self._say(f"{run.title}: {'resumed' if resumed else 'started'}")

    def _settle_ended(self, *, stopping: bool) -> bool:
        """Records the runs whose processes have ended; returns whether there were any."""
        ended = [slot for slot, child in self._children.items() if child.process.poll() is not None]
        for slot in ended:
            self._settle(self._children.pop(slot), stopping)
        return bool(ended)

    def _settle(self, child: _Child, stopping: bool) -> None:
        """Records how a run's process ended."""
        status = child.process.returncode
        workdir = self._folder / "runs" / child.run.name
        seconds = time.monotonic() - child.began
        if status == 0 and (workdir / "result.json").exists():
            state, reason = "done", ""
        elif status == 0 or (stopping and status in (-signal.SIGTERM, -signal.SIGKILL)):
            state, reason = "pending", "stopped by a signal"
        else:
            state, reason = "failed", _explain(status, _read_tail(self._ledger.log(child.run), child.offset))
        record = dataclasses.replace(child.record, state=state, reason=reason, seconds=child.record.seconds + seconds)
        self._ledger.write(child.run, record)
        os.close(child.lock)
        self._say(f"{child.run.title}: {state} after {format_duration(seconds)}" + (f": {reason}" if reason else ""))

    def _kill(self) -> None:
        for child in self._children.values():
            child.process.kill()


def _read_tail(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(max(offset, log.stat().st_size - _LOG_TAIL))
        return file.read().decode(errors="replace")


def _explain(status: int, output: str) -> str:
    """Returns one line: how a process ended, and the last thing it said of an error."""
    if status == -signal.SIGALRM:
        return "killed by SIGALRM: it did nothing for longer than watchdog_s; its stacks are in the log"
    how = f"exit status {status}" if status > 0 else f"killed by {signal.Signals(-status).name}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("error: ")] or lines
    return f"{how}: {said[-1]}" if said else how


@contextlib.contextmanager
def stop_signals(again: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM or SIGINT came; at the second one `again` is called."""
    count = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            again()

    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: count > 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
