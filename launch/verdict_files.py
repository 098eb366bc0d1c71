"""The files of `launch.verify`: rows read one at a time, and verdicts that a killed command leaves in order.

Beside the output stands `OUTPUT.run.json`, which says what the verdicts are of. The n-th line of the output is the
verdict on the n-th row, so the number of whole lines is all there is to know of the progress.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from rlvr import errors, types

LONGEST = 256 * 2**20  # bytes of one line; a longer one is not read into memory
_BLOCK = 2**20


class Line(NamedTuple):
    """A line of the input: its number from 1, its size in bytes, and its bytes, None where there are too many."""

    number: int
    size: int
    text: bytes | None


class Input:
    """The rows. A blank line is a row like any other (and a bad one), but at the end of the file it is none.

    Attributes:
        path: the file.
        rows: how many there are.
        sha256: of the (unpacked) content.

    Raises:
        DataError: the file cannot be read, or has no rows.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            kind = "not a plain file: it is read twice" if path.exists() else "no such file"
            raise errors.DataError(f"--input={path}: {kind}")
        self.path = path
        digest, self.rows = hashlib.sha256(), 0
        for line in self._read(digest):
            if line.text is None or line.text.strip():
                self.rows = line.number
        self.sha256 = digest.hexdigest()
        if not self.rows:
            raise errors.DataError(f"--input={path}: has no rows")

    def lines(self, skip: int) -> Iterator[Line]:
        """Yields the rows behind the first `skip`."""
        for line in self._read():
            if line.number > self.rows:
                return
            if line.number > skip:
                yield line

    def _read(self, digest: Any = None) -> Iterator[Line]:
        try:
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file:
                number = 0
                while line := file.readline(LONGEST):
                    number += 1
                    if digest is not None:
                        digest.update(line)
                    if line.endswith(b"\n") or len(line) < LONGEST:
                        yield Line(number, len(line), line)
                    else:
                        yield Line(number, LONGEST + _skip_line(cast(BinaryIO, file), digest), None)
        except (OSError, EOFError, zlib.error) as error:
            raise errors.DataError(f"--input={self.path}: cannot be read: {error}") from error


def _skip_line(file: BinaryIO, digest: Any) -> int:
    skipped = 0
    while block := file.readline(_BLOCK):
        skipped += len(block)
        if digest is not None:
            digest.update(block)
        if block.endswith(b"\n"):
            break
    return skipped


class Tally:
    """What the verdicts come to."""

    def __init__(self) -> None:
        self.rows = 0
        self._statuses = dict.fromkeys(types.STATUSES, 0)
        self._sums = {"score": 0.0, "lenient": 0.0}
        self._seconds_max = 0.0

    def add(self, verdict: Mapping[str, Any]) -> None:
        """Counts one verdict. Raises KeyError or TypeError if it is none."""
        self._statuses[verdict["status"]] += 1
        if verdict["status"] != "error":
            for name in self._sums:
                self._sums[name] += verdict[name]
        self._seconds_max = max(self._seconds_max, verdict["seconds"])
        self.rows += 1

    def summarize(self) -> dict[str, Any]:
        """Returns rows, counts per status, and the means over the rows that have a score (None if none has)."""
        scored = self.rows - self._statuses["error"]
        return {
            "rows": self.rows,
            "statuses": {status: count for status, count in self._statuses.items() if count},
            "mean_score": self._sums["score"] / scored if scored else None,
            "mean_lenient": self._sums["lenient"] / scored if scored else None,
            "seconds_max": self._seconds_max,
        }


class Output:
    """The verdicts, appended in order. A context manager that holds the file for this process.

    Args:
        path: the file; its folder is made.
        identity: what the verdicts depend on; an output of another identity is refused.
        source: the rows.

    Raises:
        DataError: the output is that of something else, is damaged, or is in use.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], source: Input) -> None:
        if path.suffix == ".gz":
            raise errors.DataError(f"--output={path}: verdicts are written as plain JSON Lines, not .gz")
        if path.exists() and not path.is_file():
            raise errors.DataError(f"--output={path}: not a plain file")
        if path.exists() and path.samefile(source.path):
            raise errors.DataError(f"--output={path} is the input")
        self.tally = Tally()
        self._path, self._side = path, path.with_name(path.name + ".run.json")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise errors.DataError(f"--output={path}: cannot be written: {error}") from error
        try:
            self._claim()
            self._adopt(dict(identity))
            self._resume(source.rows)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(self, verdicts: Sequence[Mapping[str, Any]]) -> None:
        """Hands verdicts to the operating system, at once."""
        unwritten = b"".join(json.dumps(verdict).encode("ascii") + b"\n" for verdict in verdicts)
        try:
            while unwritten:
                unwritten = unwritten[self._file.write(unwritten) :]
        except OSError as error:
            raise errors.DataError(f"--output={self._path}: cannot be written: {error}") from error
        for verdict in verdicts:
            self.tally.add(verdict)

    def _claim(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.DataError(f"--output={self._path} is being written by another process") from error

    def _adopt(self, identity: dict[str, Any]) -> None:
        """Writes `OUTPUT.run.json`, or checks that the one there says the same."""
        advice = f"choose another --output, or remove {self._path}"
        if self._path.stat().st_size:
            try:
                found = json.loads(self._side.read_bytes())
                changed = [name for name in identity if found.get(name) != identity[name]]
            except FileNotFoundError:
                raise errors.DataError(f"--output={self._path} has content of unknown origin: {advice}") from None
            except (ValueError, AttributeError) as error:
                raise errors.DataError(f"{self._side} is damaged ({error}): {advice}") from error
            if changed:
                listed = ", ".join(f"{name} was {found.get(name)!r}, is {identity[name]!r}" for name in changed)
                raise errors.DataError(f"--output={self._path} belongs to another run ({listed}): {advice}")
            return
        partial = self._side.with_name(self._side.name + ".partial")
        partial.write_text(json.dumps(identity, indent=2) + "\n")
        os.replace(partial, self._side)

    def _resume(self, rows: int) -> None:
        """Counts the verdicts that are there, and cuts off the one that a kill left unfinished."""
        self._file.seek(0)
        whole = 0
        with open(self._file.fileno(), "rb", closefd=False) as reader:
            for line in reader:
                if not line.endswith(b"\n"):
                    break
                try:
                    verdict = json.loads(line)
                    self.tally.add(verdict)
                    number = verdict["line"]
                except (ValueError, KeyError, TypeError) as error:
                    raise errors.DataError(
                        f"--output={self._path}, line {self.tally.rows + 1}: not a verdict ({error!r}): "
                        "repair or remove it"
                    ) from error
                if number != self.tally.rows or number > rows:
                    raise errors.DataError(
                        f"--output={self._path}, line {self.tally.rows}: a verdict on row {number} of {rows}: "
                        "repair or remove it"
                    )
                whole += len(line)
        self._file.truncate(whole)
