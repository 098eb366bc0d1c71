"""Being asked to stop: SIGTERM, as schedulers send it before they take a machine away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlvr import watchdog


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether to stop; with several processes, whether any of them was asked to.

    All processes must call it at the same points of the run: the answer is agreed between them. It is asked wherever
    the run gets on (a dispatch, a step), which is what the watchdog wants to know.
    """
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()

    def agreed() -> bool:
        watchdog.beat()
        if jax.process_count() == 1:
            return asked.is_set()
        return bool(np.any(multihost_utils.process_allgather(np.array(asked.is_set()))))

    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, note) if in_main_thread else None
    try:
        yield agreed
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)
