"""The system calls that a sandboxed program may make, as a classic BPF program for x86-64 Linux.

A program is one process with threads: it cannot fork, execute, signal anything, open a socket, change an owner, a
mode or a time stamp, or see another process. Whatever is not listed fails with EPERM, so that a library that tries
something better falls back or reports it; `clone3` fails with ENOSYS, because its flags cannot be looked at and the C
library then takes `clone`.
"""

from __future__ import annotations

import struct

# Always allowed. Numbers of arch/x86/entry/syscalls/syscall_64.tbl.
_PLAIN = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "pipe": 22, "select": 23,
    "sched_yield": 24, "mremap": 25, "mincore": 27, "madvise": 28, "dup": 32, "dup2": 33, "pause": 34,
    "nanosleep": 35, "getitimer": 36, "alarm": 37, "setitimer": 38, "getpid": 39, "sendfile": 40, "exit": 60,
    "wait4": 61, "uname": 63, "flock": 73, "fsync": 74, "fdatasync": 75, "ftruncate": 77, "getdents": 78,
    "getcwd": 79, "chdir": 80, "fchdir": 81, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86,
    "unlink": 87, "symlink": 88, "readlink": 89, "umask": 95, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98,
    "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110,
    "getpgrp": 111, "getgroups": 115, "getresuid": 118, "getresgid": 120, "rt_sigpending": 127,
    "rt_sigtimedwait": 128, "rt_sigsuspend": 130, "sigaltstack": 131, "statfs": 137, "fstatfs": 138,
    "sched_getparam": 143, "sched_getscheduler": 145, "arch_prctl": 158, "setrlimit": 160, "gettid": 186,
    "time": 201, "futex": 202, "sched_getaffinity": 204, "epoll_create": 213, "getdents64": 217,
    "set_tid_address": 218, "restart_syscall": 219, "fadvise64": 221, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "openat": 257, "mkdirat": 258,
    "newfstatat": 262, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266, "readlinkat": 267,
    "faccessat": 269, "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "epoll_pwait": 281, "eventfd": 284,
    "fallocate": 285, "eventfd2": 290, "epoll_create1": 291, "dup3": 292, "pipe2": 293, "preadv": 295,
    "pwritev": 296, "getcpu": 309, "renameat2": 316, "getrandom": 318, "membarrier": 324, "copy_file_range": 326,
    "statx": 332, "rseq": 334, "close_range": 436, "faccessat2": 439,
}  # fmt: skip

# Allowed for some values of one argument: call -> (number, argument, accepted values).
_BY_VALUE = {
    # FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, TCGETS, TIOCGWINSZ: never TIOCSTI or FIOASYNC
    "ioctl": (16, 1, (0x541B, 0x5421, 0x5450, 0x5451, 0x5401, 0x5413)),
    # Descriptor flags, locks and pipe sizes: never F_SETOWN or F_SETSIG, which send signals to others
    "fcntl": (72, 1, (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1031, 1032)),
    "prctl": (157, 0, (15, 16)),  # PR_SET_NAME, PR_GET_NAME
    "prlimit64": (302, 0, (0,)),  # itself
}
_CLONE, _CLONE_THREAD = 56, 0x00010000
_CLONE3 = 435
_SOCKETPAIR, _AF_UNIX, _SOCK_STREAM, _SOCK_TYPE = 53, 1, 1, 0xF  # asyncio's loop wakes itself through one

_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS = 0x00050000 | 1, 0x00050000 | 38
_ARCH_X86_64 = 0xC000003E
_X32 = 0x40000000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16


def make_filter() -> bytes:
    """Returns the array of `struct sock_filter`, 8 bytes an instruction, little-endian."""
    program = [
        *_load(_ARCH),
        *_unless_equal(_ARCH_X86_64, _KILL),
        *_load(_NUMBER),
        _op(_JUMP_GREATER_EQUAL, _X32, 0, 1),  # the x32 interface numbers the same calls otherwise
        _op(_RETURN, _KILL),
    ]
    for number in _PLAIN.values():
        program += _if_equal(number, [_op(_RETURN, _ALLOW)])
    for number, argument, values in _BY_VALUE.values():
        body = [*_load_argument(argument)]
        for value in values:
            body += _if_equal(value, [_op(_RETURN, _ALLOW)])
        program += _if_equal(number, [*body, _op(_RETURN, _EPERM)])
    thread = [*_load_argument(0), _op(_AND, _CLONE_THREAD), *_unless_equal(_CLONE_THREAD, _EPERM)]
    program += _if_equal(_CLONE, [*thread, _op(_RETURN, _ALLOW)])
    pair = [*_load_argument(0), *_unless_equal(_AF_UNIX, _EPERM)]
    pair += [*_load_argument(1), _op(_AND, _SOCK_TYPE), *_unless_equal(_SOCK_STREAM, _EPERM)]
    program += _if_equal(_SOCKETPAIR, [*pair, _op(_RETURN, _ALLOW)])
    program += _if_equal(_CLONE3, [_op(_RETURN, _ENOSYS)])
    program.append(_op(_RETURN, _EPERM))
    return b"".join(program)


def _op(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, operand)


def _load(offset: int) -> list[bytes]:
    return [_op(_LOAD, offset)]


def _load_argument(index: int) -> list[bytes]:
    """Loads the low half of an argument: every argument looked at here is an int or a flag word of 32 bits."""
    return _load(_ARGUMENTS + 8 * index)


def _if_equal(value: int, body: list[bytes]) -> list[bytes]:
    """`body` must end in a return: it may overwrite the loaded word."""
    return [_op(_JUMP_EQUAL, value, 0, len(body)), *body]


def _unless_equal(value: int, action: int) -> list[bytes]:
    return [_op(_JUMP_EQUAL, value, 1, 0), _op(_RETURN, action)]
