"""A pool of killable worker processes: the only place where verifiers meet text that a policy wrote.

One thread drives one worker process. An item has a hard wall-clock limit, counted from the moment it is sent
to a worker; when it runs out, the worker's whole process group is killed and replaced, so neither a hang in
native code nor a process left behind outlives its item.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import queue
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any

from rlvr import errors, types
from rlvr.verifiers import base
from rlvr.verifiers.judges import JudgeConfig
from rlvr.verifiers.process import WorkerDied, WorkerProcess, WorkerStartError
from rlvr.verifiers.sandbox import levels

_START_ATTEMPTS = 3


@dataclasses.dataclass
class VerifierConfig:
    """How verifiers are run.

    Attributes:
        workers: number of worker processes.
        timeout_s: wall-clock seconds that one item may take, from dispatch to its verdict.
        memory_gb: GiB of address space of one worker (Linux only).
        sandbox: the level that programs run at: "auto" takes the safest that works; "bubblewrap", "landlock", and
            "unsafe", which nothing takes by itself. See `sandbox.levels`.
        program_memory_mb: MiB of address space of one program.
        judge: who judges where a task's verifier is `rubric`.
    """

    workers: int = 2
    timeout_s: float = 5.0
    memory_gb: float = 4.0
    sandbox: str = "auto"
    program_memory_mb: int = 1024
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        errors.check_between("verifiers.workers", self.workers, 1, 1024)
        errors.check_between("verifiers.memory_gb", self.memory_gb, 0.5, 1024)
        self.judge.validate()
        self.program_limits().validate()

    def program_limits(self) -> levels.Limits:
        """Returns what a sandboxed program may use."""
        return levels.Limits(self.sandbox, self.timeout_s, self.program_memory_mb)


@dataclasses.dataclass
class _Item:
    id: str
    verifier: str
    request: bytes
    future: concurrent.futures.Future[types.Verdict]


class VerifierPool:
    """Verifies completions in worker processes, several at a time. A context manager.

    Args:
        config: see `VerifierConfig`.
        verifiers: every verifier that will be asked for: keys of `base.VERIFIERS` or
            "package.module:function".

    Raises:
        ConfigError: a field that cannot work, no verifier, or an unknown one.
        WorkerStartError: a worker could not load its verifiers, with the reason.
    """

    def __init__(self, config: VerifierConfig, verifiers: Sequence[str]) -> None:
        config.validate()
        self._verifiers = tuple(dict.fromkeys(verifiers))
        if not self._verifiers:
            raise errors.ConfigError("verifiers=() names no verifier")
        base.check_names(self._verifiers)
        self._config = dataclasses.replace(config)
        self._environment: dict[str, str] = {}
        if base.JUDGED & set(self._verifiers):  # no other worker learns of a key
            self._environment = config.judge.environment(config.timeout_s)
        self._items: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._failure: Exception | None = None
        self._workers: dict[int, WorkerProcess] = {}
        started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        # Daemons: a pool that nobody closed must not keep the interpreter from ending.
        self._threads = [
            threading.Thread(target=self._serve, args=(slot, started), name=f"verifier-{slot}", daemon=True)
            for slot in range(config.workers)
        ]
        for thread in self._threads:
            thread.start()
        for error in [started.get() for _ in self._threads]:
            if error is not None:
                self.close()
                raise error

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(
        self, task: types.Task, completion: str, tokens: int | None = None
    ) -> concurrent.futures.Future[types.Verdict]:
        """Queues one completion and returns at once.

        The future's result is a verdict, whatever the verifier does: one that raises, dies or returns
        nonsense has status "error", one that exceeds the limit "timeout". It raises CancelledError if the
        pool is closed first, and WorkerStartError if workers can no longer be started.

        Args:
            task: what was asked.
            completion: what the policy wrote.
            tokens: how many tokens were sampled; the verifier finds it in its payload as "completion_tokens".

        Raises:
            ConfigError: the pool was not made for `task.verifier`.
            DataError: the task's payload is not JSON.
            RuntimeError: the pool is closed.
            WorkerStartError: workers can no longer be started.
        """
        errors.check_choice("task.verifier", task.verifier, self._verifiers)
        # The id cannot be guessed, so nothing that an earlier item left behind can answer for this one.
        request: dict[str, Any] = {
            "id": secrets.token_hex(8),
            "verifier": task.verifier,
            "completion": completion,
            "reference": task.answer,
            "payload": dict(task.payload) | ({} if tokens is None else {"completion_tokens": tokens}),
        }
        try:
            line = json.dumps(request).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise errors.DataError(f"task {task.task!r}: its payload is not JSON: {error}") from error
        item = _Item(request["id"], task.verifier, line, concurrent.futures.Future())
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise RuntimeError("the verifier pool is closed")
            self._items.put(item)
        return item.future

    def close(self) -> None:
        """Kills the workers; what is not verified by now is cancelled. Safe to call twice."""
        self._stop(None)
        for thread in self._threads:
            thread.join()

    def _stop(self, failure: Exception | None) -> None:
        """Ends the service: drops what is queued and kills the workers, which wakes their threads."""
        with self._lock:
            if self._closed:
                return
            self._closed, self._failure = True, failure
            workers = list(self._workers.values())
        while not self._items.empty():  # nothing is added once closed
            item = _get_nowait(self._items)
            if item is not None and item.future.set_running_or_notify_cancel():
                item.future.set_exception(failure or concurrent.futures.CancelledError())
        for _ in self._threads:
            self._items.put(None)
        for worker in workers:
            worker.kill()

    def _serve(self, slot: int, started: queue.SimpleQueue[BaseException | None]) -> None:
        """Drives one worker until the pool is closed."""
        try:
            worker = self._start(slot)
        except (WorkerStartError, OSError) as error:
            started.put(error)
            return
        started.put(None)
        try:
            while (item := self._items.get()) is not None:
                if not item.future.set_running_or_notify_cancel():
                    continue
                try:
                    if not worker.is_alive():  # killed between two items: this one has lost nothing
                        worker = self._restart(slot)
                    verdict, usable = self._verify(worker, item)
                except Exception as error:  # whatever it is, whoever waits for this item must hear of it
                    item.future.set_exception(error)
                    raise
                if self._closed and not usable:
                    item.future.set_exception(self._failure or concurrent.futures.CancelledError())
                    return
                item.future.set_result(verdict)
                if not usable:
                    worker = self._restart(slot)
        except Exception as error:
            self._stop(error)
        finally:
            self._drop(slot)

    def _start(self, slot: int) -> WorkerProcess:
        limits, environment = self._config.program_limits(), self._environment
        worker = WorkerProcess(self._verifiers, self._config.memory_gb, limits, environment)
        with self._lock:
            self._workers[slot] = worker
            if self._closed:  # `_stop` did not see this one
                worker.kill()
        try:
            worker.wait_ready()
        except WorkerStartError:
            with self._lock:
                del self._workers[slot]
            raise
        return worker

    def _restart(self, slot: int) -> WorkerProcess:
        """Replaces a worker. Raises WorkerStartError after a few attempts, or once the pool is closed."""
        self._drop(slot)
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                return self._start(slot)
            except (WorkerStartError, OSError) as error:
                if attempt == _START_ATTEMPTS or self._closed:
                    raise WorkerStartError(f"a verifier worker could not be replaced: {error}") from error
                time.sleep(0.2 * attempt)
        raise AssertionError("unreachable")

    def _drop(self, slot: int) -> None:
        with self._lock:
            worker = self._workers.pop(slot, None)
        if worker is not None:
            worker.close()

    def _verify(self, worker: WorkerProcess, item: _Item) -> tuple[types.Verdict, bool]:
        """Returns the verdict on one item, and whether the worker can go on to another."""
        start = time.monotonic()
        limit = self._config.timeout_s
        try:
            reply: dict[str, Any] = {}
            line = item.request
            while reply.get("id") != item.id:  # whatever else arrives was written for another item
                reply = json.loads(worker.exchange(line, start + limit))
                line = b""
            return types.Verdict(**reply["verdict"]), not reply["children"]
        except TimeoutError:
            status, detail = "timeout", f"no verdict within {limit:g} s; the worker was killed"
        except WorkerDied as error:
            status, detail = "error", str(error)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            status, detail = "error", f"the worker's reply cannot be read: {error}"
        detail = f"verifier {item.verifier!r}: {detail}"
        return base.make_failure(status, detail, time.monotonic() - start), False


def _get_nowait(items: queue.SimpleQueue[_Item | None]) -> _Item | None:
    try:
        return items.get_nowait()
    except queue.Empty:  # a worker's thread took it between the look and the grab
        return None
