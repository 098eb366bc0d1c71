"""What a verifier asks of the sandbox: run a program on an input, or run tests against a program.

The rooms are started once for a worker and stay warm. A room that died is replaced, and the item that met its end is
tried once more; only a second failure is an infrastructure error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import select
import struct
import time
from collections.abc import Sequence
from typing import Any

from rlvr.verifiers.sandbox import levels
from rlvr.verifiers.sandbox.rooms import Room

_MAX_REPLY = 2**20
_CHUNK = 2**16
_TRIAL, _TRIAL_S = "print(40 + 7)", 10.0


@dataclasses.dataclass(frozen=True)
class Run:
    """How a program ended.

    Attributes:
        status: "ended" (of its own accord, without an error), "failed" (an exception, an exit code, a signal),
            "unparsed" (no program in any source), "timeout", or "output" (more than it may write).
        output: what it wrote to its standard output, at most the limit.
        detail: for people.
    """

    status: str
    output: bytes
    detail: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What the tests said: status is "correct", "wrong", "unparsed", "refused" or "timeout"."""

    status: str
    passed: int
    total: int
    detail: str


class BadTests(ValueError):
    """Tests that cannot be run whatever the program: the row's fault."""


class Sandbox:
    """Two rooms at one level: one for programs, one for tests. Used by one thread.

    Args:
        limits: see `levels.Limits`.

    Raises:
        SandboxError: no level that the limits accept works here.
    """

    def __init__(self, limits: levels.Limits) -> None:
        limits.validate()
        self.limits = limits
        self._rooms: dict[str, Room] = {}
        self.level = self._choose()

    def _choose(self) -> str:
        accepted = levels.LEVELS[:-1] if self.limits.level == "auto" else (self.limits.level,)
        reasons = []
        for level in accepted:
            try:
                self.level = level
                run = _Exchange(time.monotonic() + _TRIAL_S).run_program(self._room, [_TRIAL], b"", _CHUNK)
                if run.output == b"47\n":
                    return level
                reasons.append(f"{level}: a program that should print 47 did not: {run.status} {run.detail}")
            except levels.SandboxError as error:
                reasons.append(f"{level}: {error}")
            self.close()
        raise levels.SandboxError(
            f"programs cannot be run safely here ({'; '.join(reasons)}): {levels.INSTALL}, "
            "or ask for verifiers.sandbox='unsafe'"
        )

    def describe(self) -> str:
        """Returns a line that says which level is in force and what it consists of."""
        room = self._room("candidate")
        parts = {"namespaces": room.namespaces, "work folder": room.has_folder}
        return f"{self.level} ({', '.join(name if has else f'no {name}' for name, has in parts.items())})"

    def pids(self) -> set[int]:
        """The processes that belong to the sandbox itself, children of this one."""
        return {room.pid for room in self._rooms.values()}

    def close(self) -> None:
        for room in self._rooms.values():
            room.close()
        self._rooms.clear()

    def run_program(self, sources: Sequence[str], stdin: bytes, deadline: float, output_limit: int) -> Run:
        """Runs the first source that is a program, with an input, until its end or `deadline` (time.monotonic()).

        Raises:
            SandboxError: the sandbox failed, twice.
        """
        return self._retry(lambda: _Exchange(deadline).run_program(self._room, sources, stdin, output_limit))

    def run_tests(self, sources: Sequence[str], spec: dict[str, Any], deadline: float) -> Report:
        """Runs tests against a program: `spec` has "tests", "setup", "prompt" and "entry_point".

        Raises:
            BadTests: the row's fault.
            SandboxError: the sandbox failed, twice.
        """
        return self._retry(lambda: _Exchange(deadline).run_tests(self._room, sources, spec))

    def _retry(self, action: Any) -> Any:
        try:
            return action()
        except levels.SandboxError:
            self.close()
            return action()

    def _room(self, role: str) -> Room:
        room = self._rooms.get(role)
        if room is None or not room.is_alive():
            if room is not None:
                room.close()
            room = self._rooms[role] = Room(self.level, self.limits, warm=("unittest",) if role == "judge" else ())
        return room


class _Exchange:
    """One item's pipes, and the loop that serves them."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._ours: set[int] = set()
        self._started: list[Room] = []

    def run_program(self, room_of: Any, sources: Sequence[str], stdin: bytes, output_limit: int) -> Run:
        room = room_of("candidate")
        try:
            input_end, input_ = self._pipe_out()
            output, output_end = self._pipe_in()
            request_end, request = self._pipe_out()
            reply, reply_end = self._pipe_in()
            self._start(room, "candidate", input_end, output_end, [request_end, reply_end])
            writes = {input_: stdin, request: _frame({"op": "run", "sources": list(sources)})}
            reads = {output: output_limit, reply: _MAX_REPLY}
            received, why = self._serve(room, writes, reads, until=())
            code = self._end(room, kill=why != "ended")
        finally:
            self._close()
        text = received[output][:output_limit]
        if why != "ended":
            detail = "no end within the limit" if why == "timeout" else f"more than {output_limit} bytes of output"
            return Run(why, text, detail)
        return self._judge_end(code, text, _parse_frame(received[reply]))

    @staticmethod
    def _judge_end(code: int, output: bytes, answer: dict[str, Any] | None) -> Run:
        # The answer is the program's own word, so it can only make things worse. Nor does exit code 0 earn anything.
        if answer is not None and "raised" in answer:
            raised = answer["raised"]
            said = raised.get("text") or raised.get("names") if isinstance(raised, dict) else raised
            return Run("failed", output, str(said)[:300])
        if answer is not None and answer.get("unparsed"):
            return Run("unparsed", output, "no code found")
        if code != 0:
            return Run("failed", output, f"exit code {code}" if code > 0 else f"killed by signal {-code}")
        return Run("ended", output, "")

    def run_tests(self, room_of: Any, sources: Sequence[str], spec: dict[str, Any]) -> Report:
        nonce = secrets.token_hex(16)
        program, judge = room_of("candidate"), room_of("judge")
        try:
            nulls = [self._own(os.open(os.devnull, os.O_RDWR)) for _ in range(4)]
            calls_end, calls = map(self._own, os.pipe())
            answers_end, answers = map(self._own, os.pipe())
            spec_end, spec_out = self._pipe_out()
            verdict, verdict_end = self._pipe_in()
            self._start(program, "candidate", nulls[0], nulls[1], [calls_end, answers])
            self._start(judge, "judge", nulls[2], nulls[3], [spec_end, verdict_end, answers_end, calls])
            request = _frame({**spec, "sources": list(sources), "nonce": nonce})
            received, why = self._serve(judge, {spec_out: request}, {verdict: _MAX_REPLY}, until=(verdict,))
            for room in (judge, program):
                self._end(room, kill=True)
        finally:
            self._close()
        report = _parse_frame(received[verdict])
        if why == "timeout":
            return Report("timeout", 0, 1, "no verdict of the tests within the limit")
        if report is None or report.get("nonce") != nonce:
            # A judge that died: only what the program sent it can have done that, or the tests themselves.
            return Report("refused", 0, 1, "the tests' process ended before its verdict")
        if "bad" in report:
            raise BadTests(report["bad"])
        return Report(report["status"], report["passed"], report["total"], report["detail"])

    def _own(self, descriptor: int) -> int:
        self._ours.add(descriptor)
        return descriptor

    def _pipe_out(self) -> tuple[int, int]:
        """Returns (the other side's end, ours to write to)."""
        theirs, ours = map(self._own, os.pipe())
        os.set_blocking(ours, False)
        return theirs, ours

    def _pipe_in(self) -> tuple[int, int]:
        """Returns (ours to read from, the other side's end)."""
        ours, theirs = map(self._own, os.pipe())
        return ours, theirs

    def _start(self, room: Room, role: str, stdin: int, stdout: int, channels: list[int]) -> None:
        self._ours -= {stdin, stdout, *channels}  # the room closes them
        try:
            room.start(role, stdin, stdout, channels)
        except OSError as error:
            raise levels.SandboxError(f"the zygote is gone: {error}") from None
        self._started.append(room)

    def _end(self, room: Room, kill: bool) -> int:
        self._started.remove(room)
        return room.end(kill)

    def _serve(
        self, room: Room, writes: dict[int, bytes], reads: dict[int, int], until: tuple[int, ...]
    ) -> tuple[dict[int, bytes], str]:
        """Moves bytes until the room's program ends, one of `until` is complete, a limit is passed or time runs out.

        Returns what was read, and "ended", "complete", "output" or "timeout".
        """
        unsent = {descriptor: memoryview(data) for descriptor, data in writes.items()}
        received: dict[int, bytearray] = {descriptor: bytearray() for descriptor in reads}
        open_reads, why = set(reads), ""
        while not why:
            remaining = self._deadline - time.monotonic()
            if remaining <= 0:
                why = "timeout"
                break
            sources: list[Any] = [*open_reads, room]
            ready, writable, _ = select.select(sources, list(unsent), [], remaining)
            for descriptor in writable:
                self._write(unsent, descriptor)
            for descriptor in [item for item in ready if item is not room]:
                chunk = os.read(descriptor, _CHUNK)
                received[descriptor] += chunk
                if not chunk:
                    open_reads.discard(descriptor)
                if len(received[descriptor]) > reads[descriptor]:
                    why = "output"
                elif descriptor in until and (not chunk or _is_whole(received[descriptor])):
                    why = "complete"
            if not why and room in ready and len(ready) == 1:
                why = "ended"  # and all that it wrote has been read
        return {descriptor: bytes(data) for descriptor, data in received.items()}, why

    def _write(self, unsent: dict[int, memoryview], descriptor: int) -> None:
        try:
            data = unsent[descriptor]
            unsent[descriptor] = data[os.write(descriptor, data[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not read its input: its affair
            unsent[descriptor] = memoryview(b"")
        if not unsent[descriptor]:
            del unsent[descriptor]
            os.close(descriptor)
            self._ours.discard(descriptor)

    def _close(self) -> None:
        """Frees the pipes; ends programs that an error left running."""
        for descriptor in self._ours:
            os.close(descriptor)
        self._ours.clear()
        for room in self._started:
            with contextlib.suppress(levels.SandboxError):
                room.end(kill=True)
        self._started.clear()


def _frame(message: dict[str, Any]) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack(">I", len(data)) + data


def _is_whole(data: bytearray) -> bool:
    return len(data) >= 4 and len(data) >= 4 + struct.unpack(">I", data[:4])[0]


def _parse_frame(data: bytes) -> dict[str, Any] | None:
    """Returns the first message, or None where there is none that can be read: programs write here too."""
    if len(data) < 4:
        return None
    (size,) = struct.unpack(">I", data[:4])
    try:
        message = json.loads(data[4 : 4 + size])
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None
