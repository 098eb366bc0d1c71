"""Finding the answer in a completion: strictly, where the format puts it, and leniently, wherever it may be.

The strict answer earns the reward; the lenient one only tells apart a policy that cannot solve the task from
one that solves it and writes the answer elsewhere. Both look only behind the last `</think>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rlvr import errors
from rlvr.verifiers import numerals

_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"
_BOX = "\\boxed{"
_TAG_OPEN, _TAG_CLOSE = "<answer>", "</answer>"
_HASH = "####"
_PHRASE = re.compile(r"answer[*_\s]*(?:is|:|=)[*_\s:=]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)")


def strip_reasoning(text: str) -> str:
    """Returns what follows the last `</think>`: the whole text where there is none."""
    return text.rpartition(_THINK_CLOSE)[2]


def extract_strict(text: str, answer_format: str = "bare") -> str | None:
    """Returns the answer where `answer_format` asks for it, or None where it is not there.

    Reasoning that was opened and never closed has no answer: whatever it says in passing was not given as
    one.

    Raises:
        ConfigError: `answer_format` is not a key of `ANSWER_FORMATS`.
    """
    errors.check_choice("answer_format", answer_format, ANSWER_FORMATS)
    text = strip_reasoning(text)
    if _THINK_OPEN in text:
        return None
    answer = ANSWER_FORMATS[answer_format](text)
    return (answer.strip() or None) if answer is not None else None


def extract_lenient(text: str, answer_format: str = "bare", *, numeric: bool = False) -> str | None:
    """Returns the answer wherever it is most plausibly written, or None where nothing is.

    Tried in this order: the format's own place, the other known places (box, tag, hash, "the answer is"),
    then the last number if `numeric`, else the last line that is not empty. Never None where `extract_strict`
    finds one.

    Args:
        text: the completion.
        answer_format: a key of `ANSWER_FORMATS`.
        numeric: whether the reference answer is a number; places that hold no number are then passed over.

    Raises:
        ConfigError: `answer_format` is not a key of `ANSWER_FORMATS`.
    """
    errors.check_choice("answer_format", answer_format, ANSWER_FORMATS)
    text = strip_reasoning(text)
    # The sort is stable: the format's own place comes first, the others keep their order.
    for place in sorted(_PLACES, key=lambda name: name != answer_format):
        found = _unwrap(_PLACES[place](text) or "")
        if found and numeric and numerals.parse_number(found) is None:
            found = numerals.find_last_number(found) or ""
        if found:
            return found
    if numeric and (number := numerals.find_last_number(text)):
        return number
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (_unwrap(lines[-1]) or lines[-1]) if lines else None


def _unwrap(text: str) -> str:
    """Takes off the emphasis, code and math marks around an answer, and a full stop behind it."""
    text = text.strip().strip("*_`").removesuffix(".").strip("*_` ")
    if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def _scan_boxes(text: str) -> tuple[list[tuple[int, int]], int]:
    """Returns (start, end) of the contents of every closed \\boxed{}, and the start of the last one, or -1.

    One pass with a stack of braces, so that a completion made of thousands of unclosed boxes costs no more.
    """
    closed: list[tuple[int, int]] = []
    open_braces: list[int] = []  # where the contents start for a box, -1 for any other brace
    last_opened, i = -1, 0
    while i < len(text):
        if text.startswith(_BOX, i):
            i += len(_BOX)
            last_opened = i
            open_braces.append(i)
            continue
        if text[i] == "\\":  # \{ and \} are characters of the answer, not braces
            i += 2
            continue
        if text[i] == "{":
            open_braces.append(-1)
        elif text[i] == "}" and open_braces:
            start = open_braces.pop()
            if start >= 0:
                closed.append((start, i))
        i += 1
    return closed, last_opened


def find_boxes(text: str) -> list[str]:
    """Returns the contents of every closed \\boxed{}, in order."""
    return [text[start:end] for start, end in sorted(_scan_boxes(text)[0])]


def find_tags(text: str) -> list[str]:
    """Returns the contents of every <answer>...</answer>, in order."""
    pieces = (piece.partition(_TAG_CLOSE) for piece in text.split(_TAG_OPEN)[1:])
    return [answer for answer, close, _ in pieces if close]


def find_hashes(text: str) -> list[str]:
    """Returns what follows every "####" on its line, in order."""
    return [piece.partition("\n")[0] for piece in text.split(_HASH)[1:]]


def count_phrases(text: str) -> int:
    """Returns how often "the answer is" or its like is said."""
    return sum(1 for _ in _PHRASE.finditer(text))


def _find_box_strict(text: str) -> str | None:
    closed, last_opened = _scan_boxes(text)
    return next((text[start:end] for start, end in closed if start == last_opened), None)


def _find_box_lenient(text: str) -> str | None:
    closed, _ = _scan_boxes(text)
    if not closed:
        return None
    start, end = max(closed)
    return text[start:end]


def _find_tag_strict(text: str) -> str | None:
    if text.count(_TAG_OPEN) != 1 or text.count(_TAG_CLOSE) != 1:
        return None
    start, end = text.find(_TAG_OPEN) + len(_TAG_OPEN), text.find(_TAG_CLOSE)
    return text[start:end] if start <= end else None


def _find_tag_lenient(text: str) -> str | None:
    lowered = text.lower() if len(text.lower()) == len(text) else text  # offsets must stay those of `text`
    end = lowered.rfind(_TAG_CLOSE)
    end = len(text) if end < 0 else end
    start = lowered.rfind(_TAG_OPEN, 0, end)
    return text[start + len(_TAG_OPEN) : end] if start >= 0 else None


def _find_hash_strict(text: str) -> str | None:
    _, mark, rest = text.rpartition(_HASH)
    return rest if mark and "\n" not in rest.strip() else None


def _find_hash_lenient(text: str) -> str | None:
    _, mark, rest = text.rpartition(_HASH)
    return rest.strip().partition("\n")[0] if mark else None


def _find_phrase(text: str) -> str | None:
    matches = list(_PHRASE.finditer(text))
    if not matches:
        return None
    line = text[matches[-1].end() :].partition("\n")[0]
    return _SENTENCE_END.split(line, maxsplit=1)[0]


ANSWER_FORMATS: dict[str, Callable[[str], str | None]] = {
    "bare": str.strip,
    "boxed": _find_box_strict,
    "tag": _find_tag_strict,
    "hash": _find_hash_strict,
}

_PLACES: dict[str, Callable[[str], str | None]] = {
    "boxed": _find_box_lenient,
    "tag": _find_tag_lenient,
    "hash": _find_hash_lenient,
    "phrase": _find_phrase,
}

# Every answer of a kind, not only the one that counts: several that differ are a sign of guessing.
FILLED_PLACES: tuple[Callable[[str], list[str]], ...] = (find_boxes, find_tags, find_hashes)
