"""Which walls stand between a program and the machine, and how a room with them is started.

| level | walls |
|---|---|
| `bubblewrap` | namespaces of its own (user, process, network, mount, IPC, host name) with a read-only root of system \
libraries and the standard library alone; then all of `landlock` that the kernel has |
| `landlock` | Landlock (files, TCP, signals), seccomp, resource limits; namespaces too where the kernel grants them |
| `unsafe` | resource limits alone: only where it is asked for by name |
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import glob
import os
import platform
import shutil
import stat
import sys
import sysconfig
from typing import Any

from rlvr import errors
from rlvr.verifiers.sandbox import seccomp

LEVELS = ("bubblewrap", "landlock", "unsafe")
CHOICES = ("auto", *LEVELS)

INSTALL = "install bubblewrap (bash scripts/install_sandbox.sh, or apt-get install bubblewrap)"

# One arena: each would reserve address space for every thread. A fixed hash seed: the same program, the same verdict.
ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}

_LEAST_LANDLOCK = 3  # before it, a file that may not be written can still be emptied
_FOLDER_BYTES = 16 * 2**20
_THREADS = 64
_WORK = "/work"
_PYTHON = "/python"
_SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
USERS = range(64000, 65000)  # nobody's: given to programs where root may choose


class SandboxError(RuntimeError):
    """No level that was asked for works here; says why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one item, and one program of it, may use.

    Attributes:
        level: one of `CHOICES`; "auto" takes the safest that works and never "unsafe".
        timeout_s: wall-clock seconds of an item.
        memory_mb: MiB of address space of a program.
    """

    level: str = "auto"
    timeout_s: float = 5.0
    memory_mb: int = 1024

    def validate(self) -> None:
        """Raises ConfigError."""
        errors.check_choice("verifiers.sandbox", self.level, CHOICES)
        errors.check_between("verifiers.timeout_s", self.timeout_s, 0.01, 3600)
        errors.check_between("verifiers.program_memory_mb", self.memory_mb, 64, 1024 * 1024)


@dataclasses.dataclass(frozen=True)
class Python:
    """The interpreter that programs get: the one that this process's environment is based on, without packages."""

    executable: str
    prefix: str
    library: str
    readable_by_others: bool


def find_python() -> Python:
    """Raises SandboxError if its files cannot be found."""
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    prefix = os.path.realpath(sys.base_prefix)
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    if not executable.startswith(prefix + "/") or not library.startswith(prefix + "/"):
        raise SandboxError(f"the interpreter {executable} and its library {library} are not below {prefix}")
    return Python(executable, prefix, library, _is_readable_by_others(library))


def _is_readable_by_others(path: str) -> bool:
    while path != "/":
        if not os.stat(path).st_mode & stat.S_IXOTH:
            return False
        path = os.path.dirname(path)
    return True


def find_landlock() -> int:
    """Returns the version of Landlock's interface, 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, libc.syscall(444, None, 0, 1))


def check_machine(level: str) -> None:
    """Raises SandboxError if the level cannot work on this machine."""
    if level == "unsafe":
        return
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        raise SandboxError(f"{sys.platform} on {platform.machine()}: the safe levels are made for Linux on x86_64")
    if level == "bubblewrap" and shutil.which("bwrap") is None:
        raise SandboxError("bwrap is not installed")
    if level == "landlock" and (abi := find_landlock()) < _LEAST_LANDLOCK:
        raise SandboxError(f"Landlock's version is {abi} (at least {_LEAST_LANDLOCK} is needed: Linux 6.2)")


def make_settings(level: str, limits: Limits, python: Python, user_namespace: int | None) -> dict[str, Any]:
    """Returns what `inside.lockdown` and `inside.zygote` go by, as JSON values."""
    inside = level == "bubblewrap"
    root = os.geteuid() == 0 and level != "unsafe"
    # Root gives programs another user, for which limits and the modes of files count, where that user can read Python.
    other_user = root and (user_namespace is not None or (python.readable_by_others and not inside))
    abi = find_landlock()
    readable = [path for path in _SYSTEM_LIBRARIES if os.path.isdir(path)]
    if inside and python.prefix != "/usr":
        readable.append(_PYTHON)
    return {
        "seccomp": seccomp.make_filter().hex() if level != "unsafe" else "",
        "landlock": abi if level != "unsafe" and abi >= _LEAST_LANDLOCK else 0,
        "unshare": level == "landlock" and (user_namespace is not None or not root),
        "mounts": inside,
        "folder": _WORK + "/files" if inside else _find_hidden(python.prefix),
        "prefix": python.prefix,
        "library": "" if inside else python.library,
        "readable": readable,
        "readable_by_others": python.readable_by_others,
        "user": USERS[os.getpid() % len(USERS)] if other_user else None,
        "user_namespace": user_namespace,
        "memory_bytes": limits.memory_mb * 2**20,
        "cpu_s": int(limits.timeout_s) + 2,
        "folder_bytes": _FOLDER_BYTES,
        "threads": _THREADS + (0 if root else _count_tasks()),
        "warm": [],
    }


def _count_tasks() -> int:
    """Threads that run under this user: a limit on threads counts them too, unless programs have their own user."""
    count = 0
    for path in glob.glob("/proc/[0-9]*/task"):
        with contextlib.suppress(OSError):
            if os.stat(path).st_uid == os.geteuid():
                count += len(os.listdir(path))
    return count


def _find_hidden(prefix: str) -> str:
    """Returns the folder over which the level landlock, where it has namespaces, mounts one of its own."""
    folders = [folder for folder in ("/tmp", "/var/tmp", "/mnt", "/srv") if os.path.isdir(folder)]
    free = [folder for folder in folders if not f"{prefix}/".startswith(f"{folder}/")]
    if not free:
        raise SandboxError(f"none of {', '.join(folders)} can be hidden from programs: Python is in there")
    return free[0]


def _inside(python: Python, path: str) -> str:
    """A path of the interpreter as the room of bubblewrap shows it."""
    return path if python.prefix == "/usr" else _PYTHON + path.removeprefix(python.prefix)


def make_command(level: str, python: Python, user_namespace: int | None) -> list[str]:
    """Returns the command whose end, once the bootstrap's text is added, starts the zygote."""
    options = ["-I", "-S", "-B", "-X", "utf8", "-c"]
    if level != "bubblewrap":
        return [python.executable, *options]
    command = ["bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if user_namespace is not None:
        command += ["--userns", str(user_namespace)]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    command += ["--die-with-parent", "--as-pid-1", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        command += ["--setenv", name, value]
    command += ["--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]
    if user_namespace is not None:
        command += [
            "--cap-add",
            "CAP_KILL",
            "--cap-add",
            "CAP_SETUID",
            "--cap-add",
            "CAP_SETGID",
            "--cap-add",
            "CAP_SETPCAP",
        ]
    for path in _SYSTEM_LIBRARIES:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path).lstrip("/"), path]
        elif os.path.isdir(path):
            command += ["--ro-bind", path, path]
    for path in ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"):
        command += ["--ro-bind-try", path, path]
    if python.prefix == "/usr":
        command += ["--ro-bind", python.executable, python.executable]
    else:
        command += ["--ro-bind", python.prefix, _PYTHON, "--setenv", "LD_LIBRARY_PATH", f"{_PYTHON}/lib"]
    for name in ("site-packages", "dist-packages"):
        if os.path.isdir(folder := f"{python.library}/{name}"):
            command += ["--tmpfs", _inside(python, folder)]
    command += ["--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null", "--dir", _WORK, "--dir", f"{_WORK}/files"]
    return [*command, "--remount-ro", "/", _inside(python, python.executable), *options]
