"""The process that stays in the sandbox: it has the interpreter warm, and forks a process for every program.

It never runs a line of a program. Its parent speaks to it over the socket at descriptor 0, a JSON message with
descriptors attached; a program never sees that socket. Messages in: {"run": role} with the descriptors of the
program's standard input, standard output and then its channels, and {"kill": true}. Messages out: {"ready": ...};
{"ended": exit code, or minus the signal, as the kernel tells it}; {"failed": why the program could not be locked up}.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable

from rlvr.verifiers.sandbox.inside import candidate, judge, lockdown

ROLES: dict[str, Callable[[list[int]], None]] = {"candidate": candidate.main, "judge": judge.main}

_MESSAGE = 65536
_MAX_DESCRIPTORS = 8
_LOCK, _RULES, _HIGHEST = 50, 51, 1024  # descriptors: below RLIMIT_NOFILE; more than this process ever opens
_LOCKED = b"locked"
_FIRST_CHANNEL = 3  # after standard input, output and error

# What most programs import: loaded once here instead of in each of them.
_WARM = (
    "abc array base64 bisect cmath collections collections.abc contextlib copy dataclasses datetime decimal enum "
    "fractions functools hashlib heapq io itertools json math numbers operator os.path random re statistics string "
    "struct textwrap time types typing threading unicodedata"
).split()


def main(settings: dict) -> None:
    """Serves until the parent closes the socket. `settings` as in `lockdown.Lockdown`."""
    control = socket.socket(fileno=os.dup(0))
    lockdown.die_with_parent()
    namespaces = False
    if settings["unshare"]:
        namespaces = _enter_namespaces(settings)
    lockdown.protect_self()
    for name in [*_WARM, *settings["warm"]]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no collection in a child may touch, and so copy, the pages it shares
    ruleset = None
    if settings["landlock"]:
        readable = [*_list_library(settings["library"]), *settings["readable"]]
        writable = [os.path.dirname(settings["folder"])] if settings["mounts"] else []
        ruleset = lockdown.make_ruleset(settings["landlock"], readable, writable)
    zygote = _Zygote(control, lockdown.Lockdown(settings), ruleset, alone=os.getpid() == 1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):  # the last is where a start that failed says why
        os.dup2(null, standard)
    os.close(null)
    control.send(json.dumps({"ready": True, "namespaces": namespaces, "mounts": settings["mounts"]}).encode())
    zygote.serve()


def _enter_namespaces(settings: dict) -> bool:
    """Enters namespaces of its own where the machine lets it, and hides what must not be seen in them."""
    namespaces = lockdown.enter_namespaces(settings["user_namespace"])
    if not namespaces:
        if settings["user_namespace"] is not None:
            settings["user"] = settings["user"] if settings["readable_by_others"] else None
        return False
    settings["mounts"] = True
    prefix, private = settings["prefix"], settings["folder"] + "/python"
    lockdown.mount_empty(os.fsencode(settings["folder"]))
    if not settings["readable_by_others"]:
        # Another user than this one cannot enter the folders above the interpreter: give it another way in.
        os.mkdir(private)
        lockdown.bind(os.fsencode(prefix), os.fsencode(private))
        sys.path[:] = [
            private + entry.removeprefix(prefix) if entry.startswith(prefix) else entry for entry in sys.path
        ]
        settings["library"] = private + settings["library"].removeprefix(prefix)
    work = settings["folder"] + "/work"
    os.mkdir(work)
    settings["folder"] = work
    lockdown.mount_empty(b"/proc")  # processes and descriptors by name: nothing that a program needs
    return True


def _list_library(folder: str) -> list[str]:
    """The standard library without installed packages: some of those hold answers to tests. "" for none."""
    if not folder:
        return []
    return [entry.path for entry in os.scandir(folder) if entry.name not in ("site-packages", "dist-packages")]


class _Zygote:
    def __init__(
        self, control: socket.socket, restrictions: lockdown.Lockdown, ruleset: int | None, alone: bool
    ) -> None:
        self._control, self._lockdown, self._ruleset, self._alone = control, restrictions, ruleset, alone
        self._woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        while True:
            message, descriptors = self._receive()
            if message is None:
                return
            if "run" not in message:
                continue  # a kill that came after the end
            locked, lock = os.pipe()
            pid = os.fork()
            if pid == 0:
                self._become(message["run"], descriptors, lock)
            for descriptor in (*descriptors, lock):
                os.close(descriptor)
            with open(locked, "rb") as pipe:
                failure = pipe.read()  # ends when the child is locked down, before it reads what it will run
            status = self._wait(pid)
            if status is None:
                return
            end = {"ended": os.waitstatus_to_exitcode(status)} if failure == _LOCKED else {"failed": failure.decode()}
            self._control.send(json.dumps(end).encode())

    def _receive(self) -> tuple[dict | None, list[int]]:
        data, descriptors, _, _ = socket.recv_fds(self._control, _MESSAGE, _MAX_DESCRIPTORS)
        return (json.loads(data) if data else None), descriptors

    def _wait(self, pid: int) -> int | None:
        """Returns the program's wait status, with every process it may have left ended; None if the parent is gone."""
        status, gone = None, False
        while status is None:
            ready, _, _ = select.select([self._control.fileno(), self._woken], [], [])
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 4096)
            if self._control.fileno() in ready:
                gone = self._receive()[0] is None
                os.kill(pid, signal.SIGKILL)
            ended, found = os.waitpid(pid, os.WNOHANG)
            status = found if ended else None
            if gone:
                break
        # As process 1 of its namespace, -1 reaches every other process there, at one moment. Elsewhere a program cannot
        # fork, and without safety its group is the best there is.
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1 if self._alone else -pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0 if self._alone else os.WNOHANG)[0]:
                pass
        return None if gone else status

    def _become(self, role: str, descriptors: list[int], lock: int) -> None:
        """In the child: gives up everything and plays the role. Never returns."""
        code = 1
        try:
            try:
                self._lock_up(descriptors, lock)
            except BaseException:
                os.write(_LOCK, traceback.format_exc()[-2000:].encode())
                raise
            os.write(_LOCK, _LOCKED)
            os.close(_LOCK)
            ROLES[role](list(range(_FIRST_CHANNEL, _FIRST_CHANNEL + len(descriptors) - 2)))
            code = 0
        finally:
            os._exit(code)

    def _lock_up(self, descriptors: list[int], lock: int) -> None:
        os.dup2(lock, _LOCK, inheritable=False)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        if not self._alone:
            os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        wanted = [*descriptors[:2], null, *descriptors[2:]]
        if self._ruleset is not None:
            os.dup2(self._ruleset, _RULES, inheritable=False)
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _RULES + 1) for descriptor in wanted]
        for target, descriptor in enumerate(high):
            os.dup2(descriptor, target, inheritable=False)
        os.closerange(len(high), _LOCK)
        os.closerange(_RULES if self._ruleset is None else _RULES + 1, _HIGHEST)
        self._lockdown.apply(_RULES if self._ruleset is not None else None)
