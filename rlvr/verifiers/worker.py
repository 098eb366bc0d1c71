"""The process that runs verifiers, `python -m rlvr.verifiers.worker`; `process.WorkerProcess` starts it.

It never imports jax: a process that does takes hold of the accelerator. The protocol is one JSON object a
line. The first line out is {"ready": true} or {"failed": reason}; after that every request {"id", "verifier",
"completion", "reference", "payload"} is answered by {"id", "verdict", "children"}, where "children" says that
the verifier left processes behind. End of input ends the worker.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import glob
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

from rlvr.verifiers import base
from rlvr.verifiers.sandbox import current, levels

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rlvr.verifiers.worker")
    parser.add_argument("--memory_gb", type=float, default=4.0, help="address space limit in GiB")
    parser.add_argument(
        "--limits", type=json.loads, default={}, help="of programs: the fields of levels.Limits as JSON"
    )
    parser.add_argument("verifiers", nargs="*", help="verifiers to load before the first item")
    flags = parser.parse_args(arguments)
    requests, replies = _take_protocol()
    _limit_process(flags.memory_gb)
    current.configure(levels.Limits(**flags.limits))
    for name in flags.verifiers:
        try:
            base.warm_up(name)
        except (Exception, SystemExit) as error:
            _send(replies, {"failed": f"verifier {name!r}: {type(error).__name__}: {error}"})
            return 1
    # Errors of the start belong on stderr, the chatter of verifiers does not belong on anybody's terminal.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _send(replies, {"ready": True})
    own_pid = os.getpid()
    for line in requests:
        request = json.loads(line)
        verdict = base.verify(request["verifier"], request["completion"], request["reference"], request["payload"])
        if os.getpid() != own_pid:
            os._exit(0)  # a verifier forked and the child returned as well: only the parent may answer
        verdict = dataclasses.replace(verdict, parts=dict(verdict.parts))
        reply = {"id": request["id"], "verdict": dataclasses.asdict(verdict), "children": _has_children()}
        _send(replies, reply)
    return 0


def _take_protocol() -> tuple[io.BufferedReader, io.BufferedWriter]:
    """Moves the protocol off the standard descriptors, out of reach of a print or input() of a verifier.

    The copies are not inherited by programs that a verifier starts (PEP 446).
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return requests, replies


def _limit_process(memory_gb: float) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is reported, its core file is of no use
    if not sys.platform.startswith("linux"):
        return  # macOS accepts no address space limit, and has no prctl
    limit = int(memory_gb * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # A worker that hangs in native code reads no end of input: let the kernel end it when its parent dies.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def _has_children() -> bool:
    """Whether processes started by the verifier still run, the sandbox's own apart; reaps those that ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    own = current.pids()
    return not own or bool(_list_children() - own)


def _list_children() -> set[int]:
    found: set[int] = set()
    for path in glob.glob("/proc/self/task/*/children"):
        with open(path) as file:
            found.update(map(int, file.read().split()))
    return found


def _send(replies: io.BufferedWriter, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    sys.exit(main())
