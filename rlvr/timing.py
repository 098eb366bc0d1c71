"""Seconds of a block, and of the parts of a loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Yields a function that returns the seconds since the start, fixed at the end of the block."""
    start = time.monotonic()
    end: float | None = None
    try:
        yield lambda: (time.monotonic() if end is None else end) - start
    finally:
        end = time.monotonic()


class Laps:
    """Splits the time of a loop into named parts: no second is left out, and none counts twice."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """Gives the seconds since the last end, or since the start, to the part that is named."""
        now = time.monotonic()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """Returns the seconds of each part since the last time they were taken."""
        seconds, self._seconds = self._seconds, {}
        return seconds
