"""Seconds of a block."""

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
