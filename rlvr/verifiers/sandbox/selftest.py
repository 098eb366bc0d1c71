"""Proof of the level in force: programs that try what is forbidden, watched from outside."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator

from rlvr.verifiers.sandbox import runner

_SECRET = "not for programs"
_LIMIT_S = 10.0
_OUTPUT = 2**16

# What is attempted; each must fail. {file}, {folder}, {port}, {path}, {abstract} and {pid} are real and outside.
_ATTEMPTS = {
    "read a file outside": "print(open({file!r}).read())",
    "list a folder outside": "import os; os.listdir({folder!r})",
    "change a file outside": "open({file!r}, 'a').write('x')",
    "empty a file outside": "import os; os.truncate({file!r}, 0)",
    "create a file outside": "open({folder!r} + '/new', 'w')",
    "remove a file outside": "import os; os.remove({file!r})",
    "change the mode of a file outside": "import os; os.chmod({file!r}, 0o777)",
    "see another process": "open('/proc/{pid}/environ')",
    "signal another process": "import os; os.kill({pid}, 0)",
    "signal every process": "import os; os.kill(-1, 0)",
    "start a process": "import os; os.fork()",
    "start a program": "import os; os.execv('/bin/true', ['true'])",
    "connect over the network": "import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
    "connect to a socket file": "import socket; socket.socket(socket.AF_UNIX).connect({path!r})",
    "connect to an abstract socket": "import socket; socket.socket(socket.AF_UNIX).connect('\\0' + {abstract!r})",
    "listen": "import socket; socket.create_server(('127.0.0.1', 0))",
    "take more memory": "x = bytearray({memory} * 2**20)",
    "start a thousand threads": "import threading, time\n"
    "for _ in range(1000): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
    "fill the disk": "for n in range(40): open(f'file{{n}}', 'wb').write(bytes(2**20))",
    "write a device": "open('/dev/kmsg', 'w')",
    **{
        call: f"import ctypes; c = ctypes.CDLL(None, use_errno=True)\n"
        f"if c.syscall({number}, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1: raise OSError"
        for call, number in {
            "ptrace": 101,
            "process_vm_readv": 310,
            "mount": 165,
            "unshare": 272,
            "setns": 308,
            "chroot": 161,
            "bpf": 321,
            "perf_event_open": 298,
            "keyctl": 250,
            "io_uring_setup": 425,
            "userfaultfd": 323,
            "open_by_handle_at": 304,
            "shmget": 29,
            "memfd_create": 319,
            "pidfd_open": 434,
            "setuid": 105,
        }.items()
    },
}
_FRAME = """
try:
    exec({code!r})
except (OSError, MemoryError, RuntimeError):
    print("held")
else:
    print("open")
"""


def run_probes(sandbox: runner.Sandbox) -> Iterator[tuple[str, bool]]:
    """Yields what was tried and whether the walls held. Takes a few seconds.

    Raises:
        SandboxError: the sandbox failed.
    """
    for name, attempt in _ATTEMPTS.items():
        with _outside() as (places, unharmed):
            code = attempt.format(**places, memory=2 * sandbox.limits.memory_mb)
            run = _run(sandbox, _FRAME.format(code=code), _LIMIT_S)
            held = run.output == b"held\n" or (run.status == "failed" and not run.output)
            yield name, held and unharmed()
    yield "loop for ever", _run(sandbox, "while True: pass", 1.0).status == "timeout"
    yield "print for ever", _run(sandbox, "while True: print('x' * 1000)", _LIMIT_S).status == "output"
    run = _run(sandbox, "import os; print(os.listdir('.')); open('left', 'w')", _LIMIT_S)
    run = _run(sandbox, "import os; print(os.listdir('.'))", _LIMIT_S)
    yield "leave a file to the next program", run.status != "ended" or run.output == b"[]\n"


def _run(sandbox: runner.Sandbox, source: str, seconds: float) -> runner.Run:
    return sandbox.run_program([source], b"", time.monotonic() + seconds, _OUTPUT)


@contextlib.contextmanager
def _outside() -> Iterator[tuple[dict[str, object], Callable[[], bool]]]:
    """Makes what a program could reach if it got out; yields the places, and a function: is all as it was?"""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        os.chmod(folder, 0o777)
        file, path, abstract = f"{folder}/file", f"{folder}/socket", f"rlvr-{os.getpid()}-{time.monotonic_ns()}"
        with open(file, "w") as handle:
            handle.write(_SECRET)
        os.chmod(file, 0o666)
        servers = [stack.enter_context(socket.socket(family)) for family in (socket.AF_INET, *[socket.AF_UNIX] * 2)]
        addresses: list[tuple[str, int] | str] = [("127.0.0.1", 0), path, "\0" + abstract]
        for server, address in zip(servers, addresses, strict=True):
            server.bind(address)
            server.listen()
            server.setblocking(False)
        before = _describe(folder)
        port = servers[0].getsockname()[1]

        def unharmed() -> bool:
            return _describe(folder) == before and not any(map(_was_called, servers))

        places = {"file": file, "folder": folder, "port": port, "path": path, "abstract": abstract, "pid": os.getpid()}
        yield places, unharmed


def _describe(folder: str) -> list[tuple[str, int, int]]:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    return [(entry.name, entry.stat().st_size, entry.stat().st_mode) for entry in entries]


def _was_called(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True
