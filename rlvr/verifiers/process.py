"""One worker process, seen from outside: start it, exchange one line, kill it and all that it started."""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from rlvr.verifiers.sandbox import levels

# How often a silent worker is checked for being alive: a child it forked can hold its pipes open beyond its
# death.
_POLL_S = 0.1
_START_LIMIT_S = 120.0

# All that a worker inherits: no accelerator handles, no credentials.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "VIRTUAL_ENV")
_FIXED = {
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "",
    "ROCR_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",  # each thread would reserve address space
    "PYTHONHASHSEED": "0",  # sympy's results depend on the order of sets: the same answer, the same verdict
    "PYTHONDONTWRITEBYTECODE": "1",
}


class WorkerStartError(RuntimeError):
    """A worker that did not come up: names the reason it gave."""


class WorkerDied(RuntimeError):
    """A worker that went away while an answer was awaited; the message says how."""


class WorkerProcess:
    """A running `rlvr.verifiers.worker`, in a session of its own. Used by one thread, apart from `kill`."""

    def __init__(
        self, verifiers: Sequence[str], memory_gb: float, limits: levels.Limits, environment: Mapping[str, str]
    ) -> None:
        """Starts it; `environment` is added to what every worker inherits."""
        # -P: a math.py in the current folder must not stand in for the standard one.
        options = [f"--memory_gb={memory_gb}", f"--limits={json.dumps(dataclasses.asdict(limits))}", *verifiers]
        command = [sys.executable, "-P", "-m", "rlvr.verifiers.worker", *options]
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env=_make_environment() | dict(environment),
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._stdin, False)
        self._received = b""

    def wait_ready(self) -> None:
        """Returns when the worker has loaded its verifiers.

        Raises:
            WorkerStartError: it did not, with what it said of the reason. The worker is then closed.
        """
        try:
            message = json.loads(self.exchange(b"", time.monotonic() + _START_LIMIT_S))
            if message.get("ready"):
                return
            reason = str(message.get("failed"))
        except WorkerDied as error:
            reason = f"{error}; {self._read_errors()}"
        except TimeoutError:
            reason = f"it was not ready after {_START_LIMIT_S:.0f} s; {self._read_errors()}"
        except ValueError as error:
            reason = f"its first message is not JSON ({error}); {self._read_errors()}"
        self.close()
        raise WorkerStartError(f"a verifier worker did not start: {reason}")

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def exchange(self, line: bytes, deadline: float) -> bytes:
        """Sends `line` and returns the next line that the worker writes.

        Raises:
            TimeoutError: `time.monotonic()` passed `deadline` first.
            WorkerDied: the worker went away first.
        """
        unsent = memoryview(line)
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            if unsent:
                selector.register(self._stdin, selectors.EVENT_WRITE)
            while b"\n" not in self._received:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError
                ready = {key.fd for key, _ in selector.select(min(remaining, _POLL_S))}
                if not ready and not self.is_alive():
                    raise WorkerDied(self._describe_exit())
                if self._stdin in ready:
                    unsent = unsent[self._write(unsent) :]
                    if not unsent:
                        selector.unregister(self._stdin)
                if self._stdout in ready:
                    chunk = os.read(self._stdout, 65536)
                    if not chunk:
                        raise WorkerDied(self._describe_exit())
                    self._received += chunk
        reply, _, self._received = self._received.partition(b"\n")
        return reply

    def _write(self, unsent: memoryview) -> int:
        try:
            return os.write(self._stdin, unsent)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise WorkerDied(self._describe_exit()) from None

    def _describe_exit(self) -> str:
        """Ends what is left of the worker and says how it ended."""
        self.kill()
        code = self._process.wait()
        name = f" ({signal.Signals(-code).name})" if code < 0 and -code in set(signal.Signals) else ""
        return f"the worker died with exit code {code}{name}"

    def _read_errors(self) -> str:
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace").strip()
        return f"its stderr ends with: {text[-2000:]}" if text else "its stderr is empty"

    def kill(self) -> None:
        """Kills the worker and every process in its group, at once. Any thread may call it, and twice."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # the group is gone already (macOS reports a group of zombies as not permitted)

    def close(self) -> None:
        """Kills the worker, waits for its end and frees its pipes."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()


def _make_environment() -> dict[str, str]:
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # The user's own verifiers must be found by the names under which this process would find them.
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return environment | _FIXED
