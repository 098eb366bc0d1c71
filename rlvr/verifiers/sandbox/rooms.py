"""A room: one zygote behind the walls of a level, and the programs it runs, one after another."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.resources
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from rlvr.verifiers.sandbox import levels

_PACKAGE = "rlvr.verifiers.sandbox.inside"
_MODULES = ("wire", "cases", "lockdown", "candidate", "judge", "zygote")  # each after those it imports
_START_LIMIT_S = 20.0
_END_LIMIT_S = 5.0
_CLONE_NEWUSER = 0x10000000

# The first text that the zygote's interpreter reads: it takes its modules from the socket, since no file of this
# project can be seen in there.
_BOOTSTRAP = f"""
import json, os, sys, types
message = json.loads(os.read(0, 1 << 22))
parent = None
for name in "{_PACKAGE}".split("."):
    full = name if parent is None else parent.__name__ + "." + name
    package = sys.modules[full] = types.ModuleType(full)
    package.__path__ = []
    if parent is not None:
        setattr(parent, name, package)
    parent = package
for name, source in message["modules"]:
    module = sys.modules[parent.__name__ + "." + name] = types.ModuleType(parent.__name__ + "." + name)
    setattr(parent, name, module)
    exec(compile(source, name, "exec"), module.__dict__)
module.main(message["settings"])
"""


class Room:
    """A running zygote. Used by one thread.

    Args:
        level: one of `levels.LEVELS`.
        limits: of its programs.
        warm: modules to load beforehand.

    Raises:
        SandboxError: the level does not work here.
    """

    def __init__(self, level: str, limits: levels.Limits, warm: tuple[str, ...] = ()) -> None:
        levels.check_machine(level)
        self.level = level
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        python = levels.find_python()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._control = ours
        with theirs, _user_namespace(level) as namespace:
            settings = levels.make_settings(level, limits, python, namespace)
            settings["warm"] = list(warm)
            if level == "unsafe":
                self._folder = tempfile.TemporaryDirectory(prefix="rlvr-unsafe-")
                settings["folder"] = self._folder.name
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                [*levels.make_command(level, python, namespace), _BOOTSTRAP],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=levels.ENVIRONMENT | {"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
                pass_fds=() if namespace is None else (namespace,),
                cwd="/",
            )
        try:
            self._control.send(json.dumps({"modules": _read_modules(), "settings": settings}).encode())
            ready = self._receive(_START_LIMIT_S)
        except OSError as error:
            ready = None
            reason = str(error)
        else:
            reason = "no answer"
        if ready is None or "ready" not in ready:
            self._process.kill()
            said = self._read_errors()
            self.close()
            raise levels.SandboxError(f"level {level}: {said or reason}")
        self.namespaces = level == "bubblewrap" or bool(ready["namespaces"])
        self.has_folder = bool(ready["mounts"])

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def start(self, role: str, stdin: int, stdout: int, channels: list[int]) -> None:
        """Starts a program, and closes the descriptors given. Raises OSError if the zygote is gone."""
        descriptors = [stdin, stdout, *channels]
        try:
            socket.send_fds(self._control, [json.dumps({"run": role}).encode()], descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def fileno(self) -> int:
        """Becomes readable when the program has ended: then call `end`."""
        return self._control.fileno()

    def end(self, kill: bool) -> int:
        """Waits for the end of the program and of all that it started; returns its exit code, or minus its signal.

        Raises:
            SandboxError: the program could not be locked up, or the zygote is gone.
        """
        if kill:
            with contextlib.suppress(OSError):
                self._control.send(b'{"kill": true}')
        try:
            message = self._receive(_END_LIMIT_S)
        except OSError as error:
            raise levels.SandboxError(f"the zygote is gone: {error}") from None
        if message is None:
            raise levels.SandboxError("the zygote is gone")
        if "failed" in message:
            raise levels.SandboxError(f"the program could not be locked up: {message['failed']}")
        return message["ended"]

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        end = time.monotonic() + seconds
        while True:
            ready, _, _ = select.select([self._control], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"nothing heard for {seconds:g} s")
            data = self._control.recv(65536)
            return json.loads(data) if data else None

    def _read_errors(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read().decode(errors="replace").strip()[-1000:]

    def close(self) -> None:
        """Ends the zygote and all that it started."""
        self._control.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
        if self._folder is not None:
            self._folder.cleanup()


def _read_modules() -> list[tuple[str, str]]:
    folder = importlib.resources.files(_PACKAGE)
    return [(name, folder.joinpath(f"{name}.py").read_text()) for name in _MODULES]


@contextlib.contextmanager
def _user_namespace(level: str) -> Iterator[int | None]:
    """For root: a user namespace with two users, root and the programs' own, so that limits count for programs.

    Yields its descriptor, or None where this process is not root or may not make one.
    """
    if level == "unsafe" or os.geteuid() != 0:
        yield None
        return
    libc = ctypes.CDLL(None, use_errno=True)
    made, make = os.pipe()
    go, gone = os.pipe()
    pid = os.fork()
    if pid == 0:
        done = libc.unshare(_CLONE_NEWUSER) == 0
        os.write(make, b"1" if done else b"0")
        os.close(gone)
        os.read(go, 1)
        os._exit(0)
    try:
        os.close(make)
        namespace = None
        if os.read(made, 1) == b"1":
            others = f"{levels.USERS.start} {levels.USERS.start} {len(levels.USERS)}"
            with contextlib.suppress(OSError):
                for name in ("uid_map", "gid_map"):
                    with open(f"/proc/{pid}/{name}", "w") as file:
                        file.write(f"0 0 1\n{others}\n")
                namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield namespace
        finally:
            if namespace is not None:
                os.close(namespace)
    finally:
        for descriptor in (made, go, gone):
            os.close(descriptor)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
