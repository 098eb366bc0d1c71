"""The host's memory that this process holds, on Linux."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path


def resident_gb() -> float | None:
    """Returns the process's resident memory; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def trim() -> None:
    """Gives memory that was freed back to the system, where the C library can (glibc).

    It keeps freed memory in a list for each thread that has ever allocated, of which JAX and Orbax have dozens.
    """
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
