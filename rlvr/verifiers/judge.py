"""From a way of scoring one answer to a verdict on a completion, under strict and lenient extraction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlvr import errors, types
from rlvr.verifiers import extract, numerals

_SHOWN_CHARACTERS = 80


def judge(
    completion: str,
    reference: str,
    payload: Mapping[str, Any],
    score_answer: Callable[[str], float | None],
    *,
    marks: Sequence[str] = extract.MARKS,
) -> types.Verdict:
    """Scores the strict and the lenient answer of a completion.

    Args:
        completion: what the policy wrote.
        reference: the reference answer; lenient extraction looks for a number if this is one. A completion that
            is the reference, character for character, is read as a whole.
        payload: may carry "answer_format", a key of `extract.ANSWER_FORMATS`: where the answer must stand.
        score_answer: the score of an answer, 1 or more if it is right; None if it cannot be read as an
            answer.
        marks: the ways to mark an answer that count where the payload asks for no format.

    Returns:
        a verdict whose score is the strict one. parts["lenient"] is never below parts["strict"].

    Raises:
        ConfigError: an unknown answer format.
    """
    answer_format = payload.get("answer_format")
    numeric = numerals.parse_quantity(reference) is not None
    readings = extract.extract_strict(completion, answer_format, marks=marks)
    if answer_format is None and completion.strip() == reference.strip():
        readings = (completion.strip(),)
    strict, strict_answer = _best(readings, score_answer)
    lenient = strict
    # A strict answer that is right needs no second look, and the second look can cost as much as the first.
    if strict is None or strict < 1:
        lenient_answer = extract.extract_lenient(completion, answer_format, numeric=numeric)
        if lenient_answer is not None and lenient_answer not in readings:
            lenient = score_answer(lenient_answer)
    score = 0.0 if strict is None else strict
    parts = {"strict": score, "lenient": score if lenient is None else max(score, lenient)}
    if strict is None:
        where = f"in format {answer_format!r}" if answer_format else "in any format"
        return types.Verdict(0.0, "unparsed", f"no readable answer {where}", parts=parts)
    detail = f"answer {_shorten(strict_answer)}, reference {_shorten(reference)}"
    return types.Verdict(score, "correct" if score >= 1 else "wrong", detail, parts=parts)


def _best(readings: Sequence[str], score_answer: Callable[[str], float | None]) -> tuple[float | None, str]:
    """Returns the best score of the readings and the reading that has it; None where none can be read."""
    best, answer = None, ""
    for reading in readings:
        score = score_answer(reading)
        if score is not None and (best is None or score > best):
            best, answer = score, reading
            if best >= 1:
                break
    return best, answer


def _shorten(text: str) -> str:
    shown = repr(text[: 2 * _SHOWN_CHARACTERS])
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[: _SHOWN_CHARACTERS - 3] + "..."


def check_reference(reference: str) -> str:
    """Returns a reference that has an answer. Raises DataError for one that is empty."""
    if not reference.strip():
        raise errors.DataError(f"gold={reference!r:.40} is empty (accepted: a text that holds an answer)")
    return reference
