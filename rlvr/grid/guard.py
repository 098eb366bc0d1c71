"""Becomes the process of a run: python guard.py DRIVER_PID CPUS command...

Before that it asks the kernel for a SIGTERM when the driver dies, at which a run saves itself and ends, and takes its
share of the processors (CPUS: "0,1", or "" for all). A process of its own does this: between fork and exec of a program
with threads, as the driver is, Python code may deadlock.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    driver, cpus, *command = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(driver):
        sys.exit("the driver is gone")  # it died before the kernel was asked
    if cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
