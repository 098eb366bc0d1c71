"""The sandbox of this process: a worker says once what its limits are, and verifiers share the rooms."""

from __future__ import annotations

import atexit

from rlvr.verifiers.sandbox import levels, runner

_limits = levels.Limits()
_sandbox: runner.Sandbox | None = None


def configure(limits: levels.Limits) -> None:
    """Sets the limits for what follows; a sandbox with others is closed. Raises ConfigError."""
    global _limits
    limits.validate()
    if limits != _limits:
        close()
    _limits = limits


def get() -> runner.Sandbox:
    """Returns the sandbox, started if it is not there yet. Raises SandboxError."""
    global _sandbox
    if _sandbox is None:
        _sandbox = runner.Sandbox(_limits)
        atexit.register(close)
    return _sandbox


def close() -> None:
    """Ends the sandbox, if there is one."""
    global _sandbox
    if _sandbox is not None:
        _sandbox.close()
        _sandbox = None
        atexit.unregister(close)


def pids() -> set[int]:
    """The children of this process that are the sandbox's own."""
    return _sandbox.pids() if _sandbox is not None else set()
