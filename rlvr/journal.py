"""A run's lines of metrics, each written once the device has done what it tells of: the next step does not wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rlvr import memory
from rlvr.timing import Laps
from rlvr.writers import MetricsWriter


class Journal:
    """Writes one line a step.

    A step's line is open from the dispatch of its update until somebody reads the update's metrics, which waits for
    the device. All seconds between two lines are in the second one, by part ("time/...").

    Args:
        writer: where the lines go; None on all processes but the first.
        earlier_s: seconds that the run took before this process.
    """

    def __init__(self, writer: MetricsWriter | None, earlier_s: float):
        self._writer = writer
        self._began = time.monotonic() - earlier_s
        self._laps = Laps()
        self._open: tuple[int, Mapping[str, Any], Callable[[], Mapping[str, float]]] | None = None

    @property
    def wall_s(self) -> float:
        """Seconds this run has taken, over all its processes in time (what a kill lost is not counted)."""
        return time.monotonic() - self._began

    def end(self, part: str) -> None:
        """Gives the seconds since the last call to a part of the step."""
        self._laps.end(f"time/{part}")

    def open(self, step: int, metrics: Mapping[str, Any], read: Callable[[], Mapping[str, float]]) -> None:
        """Opens the line of a step.

        Args:
            metrics: what is known.
            read: waits for the device and returns the rest; may raise.
        """
        self.settle()
        self._open = step, metrics, read

    def read(self) -> dict[str, Any]:
        """Waits for the update of the open line and returns all its metrics; the line is no longer open."""
        assert self._open is not None
        (_, metrics, read), self._open = self._open, None
        metrics = {**metrics, **read()}
        self.end("update")
        return metrics

    def settle(self) -> None:
        """Writes the open line, if there is one."""
        if self._open is not None:
            step = self._open[0]
            self.write(step, self.read())

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the line of a step, with the seconds of its parts and the memory that the process holds."""
        self.end("other")
        own: dict[str, Any] = self._laps.take()
        if (held := memory.resident_gb()) is not None:
            own["memory/host_gb"] = held
        if self._writer:
            self._writer.write(step, {**metrics, **own, "wall_s": self.wall_s})

    def commit(self) -> None:
        """Makes sure of the lines so far: a checkpoint must not know of steps whose lines can still be lost."""
        if self._writer:
            self._writer.commit()

    def write_samples(self, step: int, rows: Callable[[], list[dict[str, Any]]]) -> None:
        """Writes rows of samples, which are made only where they are written."""
        if self._writer:
            self._writer.write_samples(step, rows())
