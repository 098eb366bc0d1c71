"""Rows of JSON Lines in, verdicts as rows out: the form in which completions from elsewhere are verified.

A row is an object with "completion", "gold" where its verifier compares with a reference answer (a text; a list of
texts means any of them), and whatever else its verifier needs: every other field is the verifier's payload.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from rlvr import errors, types

# The verifiers that cannot do without a reference answer; of the user's own nothing is known.
_NEED_GOLD = ("math", "numeric", "exact", "choice", "f1")
_SHOWN = 80


class Item(NamedTuple):
    """A row as the pool takes it, and the "id" to hand back with its verdict (None: it has none)."""

    task: types.Task
    completion: str
    id: str | int | None


def parse_item(line: bytes, verifier: str) -> Item:
    """Reads one line.

    Raises:
        DataError: it is not a JSON object in UTF-8, or a field is missing or of the wrong type; names the field.
    """
    if not line.strip():
        raise errors.DataError("a blank line")
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError, and integers of thousands of digits
        raise errors.DataError(f"not valid JSON in UTF-8: {error}") from error
    if not isinstance(row, dict):
        raise errors.DataError(f"a JSON object is wanted, not {_shorten(row)}")
    completion = _read_field(row, "completion")
    if not isinstance(completion, str):
        raise errors.DataError(f"completion={_shorten(completion)} must be a text")
    payload = {field: value for field, value in row.items() if field not in ("completion", "gold")}
    gold = _read_field(row, "gold") if verifier in _NEED_GOLD else row.get("gold", "")
    if isinstance(gold, list):
        payload["gold"] = gold  # `base.verify` asks about each
        gold = ""
    if not isinstance(gold, str):
        raise errors.DataError(f"gold={_shorten(gold)} must be a text or a list of texts")
    identity = row.get("id")
    task = types.Task(0, "row", "", gold, verifier, payload=payload)
    return Item(task, completion, identity if type(identity) in (str, int) else None)


def describe_verdict(verdict: types.Verdict, line: int, identity: str | int | None) -> dict[str, Any]:
    """Returns a verdict as a row: "line", "id" where there is one, "score" and so on, other parts under "parts"."""
    others = {name: value for name, value in verdict.parts.items() if name not in ("strict", "lenient")}
    detail = f"line {line}: {verdict.detail}" if verdict.status == "error" else verdict.detail
    return {
        "line": line,
        **({} if identity is None else {"id": identity}),
        "score": verdict.score,
        "status": verdict.status,
        "detail": detail,
        "seconds": round(verdict.seconds, 6),
        "strict": verdict.parts["strict"],
        "lenient": verdict.parts["lenient"],
        "parts": others,
    }


def _read_field(row: Mapping[str, Any], field: str) -> Any:
    if field not in row:
        raise errors.DataError(
            f"the field {field!r} is missing{errors.nearest(field, row)} (the row has: {', '.join(row) or 'nothing'})"
        )
    return row[field]


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
