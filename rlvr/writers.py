"""The sinks of a run: metrics.jsonl, samples.jsonl, TensorBoard event files and the progress display."""

from __future__ import annotations

import collections
import errno
import json
import logging
import math
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import rich.console
import rich.live
import rich.progress_bar
import rich.table
import rich.text
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from rlvr import errors

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_RATE_WINDOW = 20  # steps over which the time left is estimated
_SHOWN = (  # label, metric, decimal places
    ("loss", "loss/supervised", 3),
    ("reward", "reward/mean", 2),
    ("accuracy", "accuracy/strict", 2),
    ("length", "rollout/tokens_mean", 1),
    ("tok/s", "rollout/tokens_per_s", 0),
)


def encode_row(row: Mapping[str, Any]) -> bytes:
    """Returns `row` as one line of strict JSON.

    JSON has no NaN and no infinity: such a value becomes null, and the line gets a last field
    "nonfinite" that maps its name (nested names joined by "/") to "nan", "inf" or "-inf". Zero-dimensional
    arrays count as numbers. Text is escaped to ASCII, so any sampled string, even a broken one, survives.
    """
    nonfinite: dict[str, str] = {}
    plain = {name: _plain(value, name, nonfinite) for name, value in row.items()}
    if nonfinite:
        plain["nonfinite"] = nonfinite
    return json.dumps(plain, allow_nan=False).encode("ascii") + b"\n"


def _plain(value: Any, name: str, nonfinite: dict[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}/{key}", nonfinite) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}/{index}", nonfinite) for index, item in enumerate(value)]
    if hasattr(value, "tolist"):  # numpy and jax arrays and scalars
        return _plain(value.tolist(), name, nonfinite)
    if isinstance(value, float) and not math.isfinite(value):
        nonfinite[name] = str(value)
        return None
    return value


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a JSON-lines file that a killed process may have left with a torn last line.

    A missing file has no rows. The torn line is skipped.

    Raises:
        WorkdirError: a line that is not the last is not a JSON object: the file was damaged otherwise.
    """
    if not path.exists():
        return
    torn = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if torn:
                raise errors.WorkdirError(f"{path}: line {torn} is not a JSON object; repair or remove the file")
            try:
                row = json.loads(line)
            except ValueError:  # also UnicodeDecodeError
                row = None
            if isinstance(row, dict):
                yield row
            else:
                torn = number


def drop_steps_from(path: Path, step: int) -> None:
    """Removes the rows whose "step" is `step` or later, and a torn last line; a kill leaves the old file.

    Raises:
        WorkdirError: the file is damaged (see `read_rows`), a row has no step, or the disk is full.
    """
    if not path.exists():
        return
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            for row in read_rows(path):
                if not isinstance(row.get("step"), int):
                    raise errors.WorkdirError(f"{path}: a row has no integer 'step'; repair or remove the file")
                if row["step"] < step:
                    file.write(json.dumps(row).encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise errors.WorkdirError(f"{path}: no space to rewrite it for the resumed run: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


class _AppendFile:
    """A file that grows by whole records: a write that fails midway is undone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._open()

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        return self._descriptor

    def append(self, record: bytes) -> None:
        """Adds a record, to a file that was closed too."""
        descriptor = self._open()
        size = os.fstat(descriptor).st_size
        try:
            while record:
                record = record[os.write(descriptor, record) :]
        except OSError:
            os.ftruncate(descriptor, size)
            raise

    def close(self) -> None:
        """Closes the file until the next record."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


class _EventFile:
    """A TensorBoard event file, written in the caller's thread.

    tensorboardX's own `SummaryWriter` writes from a background thread behind a bounded queue; when the disk
    is full the thread dies, the queue fills up and the next scalar blocks for ever. Its records are used.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()  # the name is unique even if a run is restarted within a second
        name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now}"
        self._file = _AppendFile(folder / name)
        start = Event(wall_time=time.time(), step=purge_step, session_log=SessionLog(status=SessionLog.START))
        self._header = self._frame(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._header += self._frame(start)  # hides what an earlier process wrote from purge_step on

    @staticmethod
    def _frame(event: Event) -> bytes:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        return b"".join(
            (length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data)))
        )

    def append(self, step: int, metrics: Mapping[str, Any]) -> None:
        values = [
            Summary.Value(tag=name, simple_value=float(value))
            for name, value in metrics.items()
            if not isinstance(value, str)
        ]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._file.append(self._header + self._frame(event))
        self._header = b""

    def close(self) -> None:
        self._file.close()


def format_duration(seconds: float) -> str:
    """Returns seconds as "45s", "3m10s" or "2h05m"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class _Progress:
    """Shows one step at a time: a live bar on a terminal, one plain line a step elsewhere."""

    def __init__(self, stream: TextIO, total_steps: int) -> None:
        self._stream = stream
        self._total = total_steps
        self._held_out: float | None = None
        self._phase: Any = None
        self._times: collections.deque[float] = collections.deque(maxlen=_RATE_WINDOW + 1)
        self._live: rich.live.Live | None = None
        if stream.isatty():
            self._live = rich.live.Live(console=rich.console.Console(file=stream), auto_refresh=False)
            self._live.start()

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._observe(metrics)
        done = step + 1
        head = f"step {done}/{self._total}"
        summary = self._summarize(done, metrics)
        if self._live is None:
            self._stream.write(f"{head} {summary}".rstrip() + "\n")
            self._stream.flush()
            return
        # A bar ends no line by itself; a row of a table does.
        line = rich.table.Table.grid(padding=(0, 1))
        line.add_row(head, rich.progress_bar.ProgressBar(total=self._total, completed=done, width=40))
        self._live.update(rich.console.Group(line, rich.text.Text(summary)), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _observe(self, metrics: Mapping[str, Any]) -> None:
        phase = metrics.get("phase")
        if phase != self._phase:  # the steps of another phase take another time
            self._phase = phase
            self._times.clear()
        self._times.append(time.monotonic())
        evaluated = [
            float(value) for name, value in metrics.items() if name.startswith("eval/") and name.endswith("/accuracy")
        ]
        if evaluated:
            self._held_out = sum(evaluated) / len(evaluated)

    def _summarize(self, done: int, metrics: Mapping[str, Any]) -> str:
        parts = ["warm start"] if self._phase == "warm_start" else []
        held_out = [] if self._held_out is None else [f"held-out {self._held_out:.2f}"]
        for label, name, places in _SHOWN:
            if name in metrics:
                parts.append(f"{label} {float(metrics[name]):.{places}f}")
                if label == "accuracy" and held_out:
                    parts.append(f"({held_out.pop()})")
        parts += held_out
        if len(self._times) > 1:
            pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
            parts.append(f"left {format_duration(pace * (self._total - done))}")
        return " ".join(parts)


class MetricsWriter:
    """Writes a run's metrics and sample rollouts; a context manager, for process 0 only.

    Files in the workdir: `metrics.jsonl` (one line a step), `samples.jsonl` (any number of rows a step) and
    `tensorboard/`. Steps are 0-based; the display counts finished ones. A resumed run first removes the lines
    of steps it will repeat, so a run that was killed has the same lines as one that was not. Each line is
    handed to the operating system at once. A full disk does not end the run: the lines are counted as lost,
    with one warning at the first and one at the end.

    The time left is the pace of the last steps of the same phase times all the steps to go.
    """

    def __init__(
        self,
        workdir: Path,
        resume_step: int,
        resume_line: int | None = None,
        *,
        total_steps: int,
        stream: TextIO | None = None,
    ) -> None:
        """Opens the files.

        Args:
            workdir: an existing folder.
            resume_step: the first step that this process will run (0 for a new run).
            resume_line: the first step whose line it will write, if that is another: the step's own part was done.
            total_steps: steps of the whole run, warm start included.
            stream: where progress is shown; standard output if not given.

        Raises:
            WorkdirError: the lines of an earlier process are damaged or cannot be rewritten.
        """
        self.lost = 0
        resume_line = resume_step if resume_line is None else resume_line
        drop_steps_from(workdir / "metrics.jsonl", resume_line)
        drop_steps_from(workdir / "samples.jsonl", resume_step)
        self._metrics = _AppendFile(workdir / "metrics.jsonl")
        self._samples = _AppendFile(workdir / "samples.jsonl")
        self._events = _EventFile(workdir / "tensorboard", resume_line)
        self._progress = _Progress(sys.stdout if stream is None else stream, total_steps)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Records the metrics of one step; names are free, values are numbers or text.

        Raises:
            ValueError: a metric is called "step" or "nonfinite", which are fields of the line itself.
        """
        reserved = {"step", "nonfinite"} & metrics.keys()
        if reserved:
            raise ValueError(f"metric name {min(reserved)!r} is reserved")
        self._attempt("metrics.jsonl", lambda: self._metrics.append(encode_row({"step": step, **metrics})))
        self._attempt("tensorboard", lambda: self._events.append(step, metrics))
        self._attempt("the progress display", lambda: self._progress.update(step, metrics))

    def write_samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Records sample rollouts of one step: all of `rows`, or (disk full) none."""
        lines = b"".join(encode_row({**row, "step": step}) for row in rows)
        self._attempt("samples.jsonl", lambda: self._samples.append(lines))

    def commit(self) -> None:
        """Closes the files until the next record: only then a mounted bucket has what was written."""
        for file in (self._metrics, self._samples, self._events):
            self._attempt("the workdir", file.close)

    def close(self) -> None:
        """Closes the files and the display, and says how much was lost."""
        self._progress.close()
        self.commit()
        if self.lost:
            logging.warning("disk full: %d records of metrics and samples were lost in this run", self.lost)

    def _attempt(self, sink: str, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            if not self.lost:
                logging.warning(
                    "disk full while writing %s (%s): the run goes on; metrics are lost until space is free",
                    sink,
                    error,
                )
            self.lost += 1
