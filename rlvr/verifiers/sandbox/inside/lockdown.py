"""What a freshly forked process gives up, for good, before it reads the program that it will run."""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys

_SYS_CAPSET = 126
_SYS_LANDLOCK = (444, 445, 446)  # create_ruleset, add_rule, restrict_self
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_LAST_CAPABILITY = 63

# Rights of Landlock on files: execute, write file, read file, read folder, then everything that changes a folder.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_READ = _EXECUTE | _READ_FILE | _READ_FOLDER  # to map a library is to execute it
_ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_MAKE_DEVICES_AND_SOCKETS = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11
_NET, _SCOPES = 0b11, 0b11  # bind and connect over TCP; abstract sockets and signals

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


class Lockdown:
    """Applies the restrictions of one level.

    Args:
        settings: of `rlvr.verifiers.sandbox.levels.make_settings`: JSON values only.
    """

    def __init__(self, settings: dict) -> None:
        self._settings = settings
        self._filter = bytes.fromhex(settings["seccomp"]) if settings["seccomp"] else b""
        self._folder = os.fsencode(settings["folder"])

    def apply(self, ruleset: int | None) -> None:
        """Gives everything up. Raises OSError where one step fails: the program must then not be run."""
        settings = self._settings
        if settings["mounts"]:
            self._mount_folder()
        if settings["user"] is not None:
            os.setgroups([])
            os.setresgid(settings["user"], settings["user"], settings["user"])
            os.setresuid(settings["user"], settings["user"], settings["user"])
        os.chdir(self._folder if settings["mounts"] or not self._filter else "/")
        die_with_parent()  # a change of user forgets it
        self._limit()
        if not self._filter:
            return  # the level without safety
        _drop_capabilities()
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        if ruleset is not None:
            _check(_libc.syscall(_SYS_LANDLOCK[2], ruleset, 0), "landlock_restrict_self")
            os.close(ruleset)
        program = ctypes.create_string_buffer(self._filter, len(self._filter))
        header = struct.pack("HxxxxxxP", len(self._filter) // 8, ctypes.addressof(program))
        _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0), "seccomp")

    def _mount_folder(self) -> None:
        """A work folder of this process's own: in memory, of bounded size and number of files, gone with it."""
        _check(_libc.unshare(_CLONE_NEWNS), "unshare(NEWNS)")
        settings = self._settings
        options = f"size={settings['folder_bytes']},nr_inodes=4096,mode=0700"
        if settings["user"] is not None:
            options += f",uid={settings['user']},gid={settings['user']}"
        mount(b"tmpfs", self._folder, b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options.encode())

    def _limit(self) -> None:
        settings = self._settings
        limits = {
            resource.RLIMIT_AS: settings["memory_bytes"],
            resource.RLIMIT_CPU: settings["cpu_s"],
            resource.RLIMIT_FSIZE: settings["folder_bytes"],
            resource.RLIMIT_NOFILE: 64,
            resource.RLIMIT_CORE: 0,
        }
        if sys.platform.startswith("linux"):
            limits[resource.RLIMIT_MSGQUEUE] = limits[resource.RLIMIT_MEMLOCK] = 0
            if self._filter:
                limits[resource.RLIMIT_NPROC] = settings["threads"]
        for kind, limit in limits.items():
            _, hard = resource.getrlimit(kind)
            value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (value, value))


def make_ruleset(abi: int, readable: list[str], writable: list[str]) -> int:
    """Returns the descriptor of Landlock rules: nothing but these paths, no TCP, no signals to others.

    A rule for a folder holds for what is mounted in it later as well.
    """
    create, add, _ = _SYS_LANDLOCK
    handled = _ALL_BY_ABI[max(known for known in _ALL_BY_ABI if known <= abi)]
    attributes = struct.pack("QQQ", handled, _NET if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _check(_libc.syscall(create, attributes, size, 0), "landlock_create_ruleset")
    rules = [(path, _READ) for path in readable]
    rules += [(path, handled & ~_MAKE_DEVICES_AND_SOCKETS) for path in writable]
    rules.append((os.devnull, _WRITE_FILE | _READ_FILE))
    for path, rights in rules:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            rights &= _WRITE_FILE | _READ_FILE | _EXECUTE
        _check(_libc.syscall(add, ruleset, 1, struct.pack("=Qi", rights, target), 0), f"landlock_add_rule {path}")
        os.close(target)
    return ruleset


def protect_self() -> None:
    """Keeps this process out of reach of every other one of the same user, and ends it with its parent."""
    if sys.platform.startswith("linux"):
        _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")


def die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        _check(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "pdeathsig")


def enter_namespaces(user_namespace: int | None) -> bool:
    """Moves this process, which becomes their first, into namespaces of its own. False where there are none.

    The caller goes on in a child that is process 1; the parent waits for it and ends with it.

    Args:
        user_namespace: descriptor of a user namespace made for this process (only root can make one with two users);
            None makes one with this user alone.
    """
    user, group = os.getuid(), os.getgid()
    if user_namespace is not None:
        if _libc.setns(user_namespace, _CLONE_NEWUSER):
            return False
    elif _libc.unshare(_CLONE_NEWUSER):
        return False
    if _libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWPID):
        if user_namespace is None:
            raise OSError(ctypes.get_errno(), "user namespaces work, the others do not")
        return False
    if user_namespace is None:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        os._exit(0)
    die_with_parent()
    return True


def bind(source: bytes, target: bytes) -> None:
    mount(source, target, None, _MS_BIND | _MS_REC, None)


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, options: bytes | None) -> None:
    """mount(2). Raises OSError."""
    _check(_libc.mount(source, target, kind, flags, options), f"mount {target.decode()}")


def mount_empty(target: bytes) -> None:
    mount(b"tmpfs", target, b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=0755,size=64k")


def _drop_capabilities() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails where it cannot matter: without CAP_SETPCAP
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _check(_libc.syscall(_SYS_CAPSET, header, none), "capset")


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
