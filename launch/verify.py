"""Verifies completions from elsewhere:

    python -m launch.verify --verifier=NAME --input=rows.jsonl --output=verdicts.jsonl [--workers=N --timeout_s=S]

A row (the input may be .gz) has "completion" and what its verifier needs; NAME is a key of
`rlvr.verifiers.base.VERIFIERS` or "package.module:function". Every row gets a verdict, in the order of the rows:

    {"line": 1, "score": 1.0, "status": "correct", "detail": "...", "seconds": 0.002,
     "strict": 1.0, "lenient": 1.0, "parts": {}}

with the row's "id" where it has one. The score is null, and the status "error", where nothing is known: the row cannot
be read, lacks a field, or its verifier failed. The same command goes on where a killed one stopped. The last line
printed is `RESULT {...}`.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import rich.console
import rich.progress
from absl import flags

from launch import cli, judge_flags
from launch.verdict_files import Input, Line, Output
from rlvr import errors, types
from rlvr.verifiers import base, rows
from rlvr.verifiers.pool import VerifierConfig, VerifierPool
from rlvr.verifiers.sandbox import levels, runner

_VERIFIER = flags.DEFINE_string("verifier", None, 'A name of `VERIFIERS`, or "package.module:function".', required=True)
_INPUT = flags.DEFINE_string("input", None, "JSON Lines, plain or .gz.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "JSON Lines of verdicts.", required=True)
_WORKERS = flags.DEFINE_integer("workers", len(os.sched_getaffinity(0)), "Worker processes.")
_TIMEOUT = flags.DEFINE_float("timeout_s", VerifierConfig.timeout_s, "Seconds that one row may take.")
_MEMORY = flags.DEFINE_float("memory_gb", VerifierConfig.memory_gb, "GiB of address space of one worker.")
_JUDGE_URL = flags.DEFINE_string("judge_url", "", 'For `rubric`: base of an OpenAI-compatible endpoint, ".../v1".')
_JUDGE_MODEL = flags.DEFINE_string("judge_model", "", "For `rubric`: the judge's name there, or of `launch.judge`.")
_JUDGE_KEY = flags.DEFINE_string("judge_key_variable", "", "For `rubric`: the environment variable with the key.")

_UNSAFE = flags.DEFINE_bool("unsafe", False, "code: run programs without a sandbox. They can do whatever you can.")

# How far ahead of the oldest unfinished row others are verified: a row that takes seconds must not hold up thousands
# that take milliseconds, and memory must stay bounded.
_AHEAD_ROWS = 4096
_AHEAD_BYTES = 64 * 2**20


class _Pending(NamedTuple):
    """A row whose verdict is awaited; `future` is done from the start where the row cannot be read."""

    line: int
    bytes: int
    id: str | int | None
    future: Future[types.Verdict]


def main(argv: Sequence[str]) -> int:
    """Verifies every row that has no verdict yet."""
    cli.refuse_arguments(argv)
    sandbox = "unsafe" if _UNSAFE.value else "auto"
    judge = judge_flags.read_judge(_JUDGE_URL.value, _JUDGE_MODEL.value, _JUDGE_KEY.value)
    config = VerifierConfig(_WORKERS.value, _TIMEOUT.value, _MEMORY.value, sandbox, judge=judge)
    config.validate()
    base.check_names([_VERIFIER.value])
    source = Input(Path(_INPUT.value))
    identity = {
        "verifier": _VERIFIER.value,
        "input_sha256": source.sha256,
        "timeout_s": config.timeout_s,
        "memory_gb": config.memory_gb,
    }
    if _VERIFIER.value in base.JUDGED:
        drawn = ("url", "model", "samples", "temperature", "max_tokens")
        identity |= {f"judge_{name}": getattr(judge, name) for name in drawn}
    if _VERIFIER.value in base.SANDBOXED:
        identity["unsafe"] = _UNSAFE.value
    began = time.monotonic()
    with Output(Path(_OUTPUT.value), identity, source) as output:
        done_before = output.tally.rows
        try:
            if done_before < source.rows:
                _report_sandbox(config)
                _verify_rest(source, output, config)
        except KeyboardInterrupt:
            print(f"stopped: {output.tally.rows} of {source.rows} rows have verdicts; the same command goes on")
            return 130
        seconds = time.monotonic() - began
        result = {"verifier": _VERIFIER.value, **output.tally.summarize()}
    verified = result["rows"] - done_before
    cli.print_result(result | {"items_per_s": round(verified / max(seconds, 1e-9), 1), "wall_s": round(seconds, 2)})
    return 0


def _report_sandbox(config: VerifierConfig) -> None:
    """Says what stands between the programs of the rows and this machine, before one is run."""
    if _VERIFIER.value not in base.SANDBOXED:
        return
    try:
        with contextlib.closing(runner.Sandbox(config.program_limits())) as sandbox:
            print(f"sandbox: {sandbox.describe()}", flush=True)
    except levels.SandboxError as error:
        if _VERIFIER.value == "code":
            raise errors.ConfigError(str(error)) from error
        print(f"sandbox: none; parts that run programs are unscorable: {error}", flush=True)


def _verify_rest(source: Input, output: Output, config: VerifierConfig) -> None:
    """Appends the verdicts of all rows that have none."""
    total, done = source.rows, output.tally.rows
    with _terminable(), VerifierPool(config, [_VERIFIER.value]) as pool, _progress(total, done) as advance:
        pending: collections.deque[_Pending] = collections.deque()
        waiting = 0  # bytes of the rows in `pending`
        for line in source.lines(skip=done):
            while pending and (len(pending) >= _AHEAD_ROWS or waiting + line.size > _AHEAD_BYTES):
                waiting -= _take_done(pending, output, advance)
            pending.append(_submit(pool, line))
            waiting += line.size
            if pending[0].future.done():
                waiting -= _take_done(pending, output, advance)
        while pending:
            _take_done(pending, output, advance)


def _submit(pool: VerifierPool, line: Line) -> _Pending:
    try:
        if line.text is None:
            raise errors.DataError(f"the line has {line.size} bytes, more than can be read")
        item = rows.parse_item(line.text, _VERIFIER.value)
        return _Pending(line.number, line.size, item.id, pool.submit(item.task, item.completion))
    except errors.DataError as error:
        failed: Future[types.Verdict] = Future()
        failed.set_result(base.make_failure("error", str(error)))
        return _Pending(line.number, line.size, None, failed)


def _take_done(pending: collections.deque[_Pending], output: Output, advance: _Advance) -> int:
    """Waits for the oldest row, writes its verdict and those of the done ones behind it; returns their bytes."""
    pending[0].future.result()
    verdicts, size = [], 0
    while pending and pending[0].future.done():
        row = pending.popleft()
        verdicts.append(rows.describe_verdict(row.future.result(), row.line, row.id))
        size += row.bytes
    output.append(verdicts)
    advance(len(verdicts))
    return size


class _Advance:
    """Moves the progress bar; nothing where there is none."""

    def __init__(self, bar: rich.progress.Progress | None, total: int, done: int) -> None:
        self._bar = bar
        self._task = bar.add_task("verifying", total=total, completed=done) if bar else None

    def __call__(self, count: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count)


@contextlib.contextmanager
def _progress(total: int, done: int) -> Iterator[_Advance]:
    """Shows a bar on a terminal; elsewhere nothing."""
    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        yield _Advance(None, total, done)
        return
    columns = (
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        yield _Advance(bar, total, done)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM end the command as Ctrl-C does: with its files in order and a word about them."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    cli.run(main)
