"""Seconds of a block."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Yields a function that returns the seconds since the start, fixed at the end of the block."""
    start = time.monotonic()
    end: float | None = None
    try:
        yield lambda: (time.monotonic() if end is None else end) - start
    finally:
        end = time.monotonic()


def unaccounted(metrics: Mapping[str, Any], began: float) -> float:
    """Returns the seconds since `began` (of `time.monotonic`) that no "time/..." metric tells of."""
    told = sum(value for name, value in metrics.items() if name.startswith("time/"))
    return max(time.monotonic() - began - told, 0.0)
