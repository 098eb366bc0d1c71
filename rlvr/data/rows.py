"""Reading JSON Lines so that whoever wrote a bad row learns which one: file, line and field."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlvr import errors


def find_file(folder: Path, stem: str) -> Path:
    """Returns folder/stem.jsonl or folder/stem.jsonl.gz. Raises DataError unless exactly one exists."""
    if not folder.is_dir():
        raise errors.DataError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    found = [path for path in (folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz") if path.is_file()]
    if not found:
        raise errors.DataError(f"{folder}: has neither {stem}.jsonl nor {stem}.jsonl.gz")
    if len(found) > 1:
        raise errors.DataError(f"{folder}: has both {stem}.jsonl and {stem}.jsonl.gz; keep one")
    return found[0]


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Returns (line number from 1, row) for every line that is not blank.

    Raises:
        DataError: a file that cannot be read or has no row, or a line that is not a JSON object.
    """
    rows = []
    for number, line in enumerate(_iter_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:  # also UnicodeDecodeError
            raise errors.DataError(f"{path}, line {number}: not valid JSON in UTF-8: {error}") from error
        if not isinstance(row, dict):
            raise errors.DataError(f"{path}, line {number}: a JSON object is wanted, not {shorten(row)}")
        rows.append((number, row))
    if not rows:
        raise errors.DataError(f"{path}: has no rows")
    return rows


def _iter_lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise errors.DataError(f"{path}: cannot be read: {error}") from error


def read_text(path: Path, number: int, row: dict[str, Any], field: str, default: str | None = None) -> str:
    """Returns a text field of a row; `default`, if there is one, where the row lacks it.

    Raises:
        DataError: the field is missing, not a text that UTF-8 can hold, or blank although there is no default.
    """
    if field not in row:
        if default is not None:
            return default
        raise errors.DataError(
            f"{path}, line {number}: the field {field!r} is missing{errors.nearest(field, row)} "
            f"(the row has: {', '.join(row) or 'nothing'})"
        )
    value = row[field]
    if not isinstance(value, str):
        raise errors.DataError(f"{path}, line {number}: the field {field!r} must be a text, not {shorten(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise errors.DataError(
            f"{path}, line {number}: the field {field!r} holds half of a surrogate pair at character {error.start}: "
            f"{shorten(value[error.start :])}"
        ) from error
    if not value.strip() and default is None:
        raise errors.DataError(f"{path}, line {number}: the field {field!r} is blank")
    return value


def shorten(value: Any) -> str:
    """Returns a value as it stands in an error message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
