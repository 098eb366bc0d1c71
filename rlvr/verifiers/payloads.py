"""Reading the fields of a row that a verifier needs, and the part of a completion that is its response.

Every function raises DataError naming the field, its value and what is accepted: `base.verify` makes an "error"
verdict of it, which says that the row is bad, not the policy.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from rlvr import errors
from rlvr.verifiers import extract

_THINK_OPEN = "<think>"


def read_present(payload: Mapping[str, Any], field: str, accepted: str) -> Any:
    """Returns payload[field]; raises DataError where the field is missing."""
    if field not in payload:
        fields = ", ".join(map(str, payload)) or "nothing"
        near = errors.nearest(field, map(str, payload))
        raise errors.DataError(f"{field} is missing{near} (accepted: {accepted}; the row has {fields})")
    return payload[field]


def read_text(payload: Mapping[str, Any], field: str, default: str | None = None) -> str:
    """Returns a text field, or `default` where the row lacks it."""
    if default is not None and payload.get(field) is None:
        return default
    value = read_present(payload, field, "a text")
    if not isinstance(value, str):
        raise make_error(field, value, "a text")
    return value


def read_choice(payload: Mapping[str, Any], field: str, choices: Collection[str], default: str) -> str:
    """Returns a text field that must be one of `choices`."""
    value = payload.get(field)
    value = default if value is None else value
    if not isinstance(value, str) or value not in choices:
        raise make_error(field, value, ", ".join(choices), errors.nearest(str(value), choices))
    return value


def read_flag(payload: Mapping[str, Any], field: str, default: bool = False) -> bool:
    """Returns a true or false field."""
    value = payload.get(field)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise make_error(field, value, "true or false")
    return value


def read_number(payload: Mapping[str, Any], field: str, default: float | None = None, *, least: float = 0.0) -> float:
    """Returns a finite number of at least `least`, or `default` where the row lacks it."""
    if default is not None and payload.get(field) is None:
        return default
    accepted = f"a number of at least {least:g}"
    value = read_present(payload, field, accepted)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise make_error(field, value, accepted)
    return float(value)


def read_count(payload: Mapping[str, Any], field: str, default: int | None = None, *, least: int = 0) -> int:
    """Returns a whole number of at least `least`; 5.0 is 5, as tables of numbers write it."""
    if default is not None and payload.get(field) is None:
        return default
    accepted = f"a whole number of at least {least}"
    value = read_present(payload, field, accepted)
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < least:
        raise make_error(field, value, accepted)
    return int(value)


def read_texts(payload: Mapping[str, Any], field: str, default: list[str] | None = None) -> list[str]:
    """Returns a list of texts, at least one."""
    if default is not None and payload.get(field) is None:
        return default
    accepted = "a list of one or more texts"
    value = read_present(payload, field, accepted)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(text, str) for text in value):
        raise make_error(field, value, accepted)
    return list(value)


def make_error(field: str, value: Any, accepted: str, hint: str = "") -> errors.DataError:
    """Returns the error for a field whose value cannot be used."""
    shown = repr(value)
    shown = shown if len(shown) <= 120 else f"{shown[:117]}..."
    return errors.DataError(f"{field}={shown} cannot be used{hint} (accepted: {accepted})")


def find_response(completion: str) -> str | None:
    """Returns what follows the last `</think>`; None where reasoning was opened and never closed.

    A policy that is still thinking has not answered: whatever it wrote on the way earns nothing.
    """
    response = extract.strip_reasoning(completion)
    return None if response.lstrip().startswith(_THINK_OPEN) else response
