"""JSON that a policy wrote: read with bounds, alone, in a fence, or somewhere in prose."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

# Reading costs time and memory in proportion, and a rest of the text may have to be read again from another place.
MAX_CHARACTERS = 1_000_000
_MAX_STARTS = 64

_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
_START = re.compile(r"[\[{]")


class NotJsonError(ValueError):
    """A text that is not JSON, or too long or too deep to be read."""


def parse_json(text: str, *, unique_keys: bool = False) -> Any:
    """Returns the value that the whole text is.

    Raises:
        NotJsonError: it is not JSON by RFC 8259 (NaN and Infinity are not), is longer than `MAX_CHARACTERS`, is nested
            too deep, or an object names a key twice and `unique_keys` is set.
    """
    value, end = _decode(text, 0, unique_keys)
    if text[end:].strip(" \t\n\r"):
        raise NotJsonError(f"text after the JSON value, at character {end}")
    return value


def find_json(text: str, *, unique_keys: bool = False) -> Iterator[Any]:
    """Yields the values of fenced blocks, then the objects and lists in the text from left to right; the first few."""
    for block in itertools.islice(iter_fences(text), _MAX_STARTS):
        try:
            yield parse_json(block, unique_keys=unique_keys)
        except NotJsonError:
            continue
    position, starts = 0, 0
    while starts < _MAX_STARTS and (match := _START.search(text, position)):
        starts += 1
        try:
            value, position = _decode(text, match.start(), unique_keys)
        except NotJsonError:
            position = match.end()
        else:
            yield value


def iter_fences(text: str) -> Iterator[str]:
    """Yields what stands in each closed ``` block, without the language named behind its first marks."""
    for match in _FENCE.finditer(text):
        yield match.group(1)


def strip_fence(text: str) -> str:
    """Returns the inside of the one ``` block that the whole text is, or the text without white space around it."""
    text = text.strip()
    match = _FENCE.fullmatch(text)
    return match.group(1).strip() if match and "```" not in match.group(1) else text


def measure_depth(value: Any) -> int:
    """Returns how deep objects and lists are nested in one another; 0 for anything else."""
    depth, level = 0, [value]
    while level := [child for item in level for child in _children(item)]:
        depth += 1
    return depth + isinstance(value, dict | list)


def _children(value: Any) -> list[Any]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [child for child in children if isinstance(child, dict | list)]


def _decode(text: str, start: int, unique_keys: bool) -> tuple[Any, int]:
    if len(text) > MAX_CHARACTERS:
        raise NotJsonError(f"{len(text)} characters are more than the {MAX_CHARACTERS} that are read")
    hook = _refuse_duplicates if unique_keys else None
    decoder = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=hook)
    while start < len(text) and text[start] in " \t\n\r":
        start += 1
    try:
        return decoder.raw_decode(text, start)
    except RecursionError:
        raise NotJsonError("nested too deep") from None
    except ValueError as error:  # also a number of too many digits
        raise NotJsonError(str(error)) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("an object names a key twice")
    return result
