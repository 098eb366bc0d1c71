"""A process that hangs ends itself, with the stacks of all its threads on stderr.

Whoever started it can start it again: launchers tell a process ended by a signal from one that failed. An interval
timer of the kernel does this and not a thread, which would wait with the others if one of them hangs in native code
and holds the interpreter's lock.
"""

from __future__ import annotations

import faulthandler
import signal
import sys

_limit_s = 0.0


def arm(limit_s: float) -> None:
    """From here to its very end the process is killed (SIGALRM) if `beat` is not called for `limit_s` seconds.

    Takes SIGALRM and the real interval timer for itself; to be called in the main thread.

    Args:
        limit_s: 0 for never.
    """
    global _limit_s
    _limit_s = limit_s
    if limit_s:
        # Chained to the default action, which is the end.
        faulthandler.register(signal.SIGALRM, file=sys.stderr, all_threads=True, chain=True)
    signal.setitimer(signal.ITIMER_REAL, limit_s)


def beat() -> None:
    """Says that the process does something; nothing if it is not watched."""
    if _limit_s:
        signal.setitimer(signal.ITIMER_REAL, _limit_s)
