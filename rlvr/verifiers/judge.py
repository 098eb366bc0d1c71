"""From a way of scoring one answer to a verdict on a completion, under strict and lenient extraction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlvr import types
from rlvr.verifiers import extract, numerals

_DETAIL_CHARACTERS = 80


def judge(
    completion: str,
    reference: str,
    payload: Mapping[str, Any],
    score_answer: Callable[[str], float | None],
) -> types.Verdict:
    """Scores the strict and the lenient answer of a completion.

    Args:
        completion: what the policy wrote.
        reference: the reference answer; lenient extraction looks for a number if this is one.
        payload: may carry "answer_format", a key of `extract.ANSWER_FORMATS` ("bare" where absent).
        score_answer: the score of an answer, 1 or more if it is right; None if it cannot be read as an
            answer.

    Returns:
        a verdict whose score is the strict one. parts["lenient"] is never below parts["strict"].

    Raises:
        ConfigError: an unknown answer format.
    """
    answer_format = payload.get("answer_format", "bare")
    numeric = numerals.parse_number(reference) is not None
    strict_answer = extract.extract_strict(completion, answer_format)
    lenient_answer = extract.extract_lenient(completion, answer_format, numeric=numeric)
    strict = score_answer(strict_answer) if strict_answer is not None else None
    lenient = strict
    # A strict answer that is right needs no second look, and the second look can cost as much as the first.
    if lenient_answer is not None and lenient_answer != strict_answer and (strict is None or strict < 1):
        lenient = score_answer(lenient_answer)
    score = 0.0 if strict is None else strict
    parts = {"strict": score, "lenient": score if lenient is None else max(score, lenient)}
    if strict is None:
        return types.Verdict(0.0, "unparsed", f"no readable answer in format {answer_format!r}", parts=parts)
    detail = f"answer {_shorten(strict_answer)}, reference {_shorten(reference)}"
    return types.Verdict(score, "correct" if score >= 1 else "wrong", detail, parts=parts)


def _shorten(text: str | None) -> str:
    shown = repr(text)
    return shown if len(shown) <= _DETAIL_CHARACTERS else shown[: _DETAIL_CHARACTERS - 3] + "..."
