"""Verifiers that need no library: equality of texts, and equality of numbers."""

from __future__ import annotations

import fractions
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from rlvr import errors, types
from rlvr.verifiers import extract, numerals
from rlvr.verifiers.judge import check_reference, judge


def verify_exact(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Right if the answer is the reference, character for character.

    Both are put in Unicode's normal form C, and runs of white space count as one space; case, punctuation, digits
    of other scripts and invisible characters matter. Where no answer format is asked for, the answer is the last
    box, `<answer>` or "####" line, else the whole completion.
    """
    wanted = _normalise(check_reference(reference))
    return judge(
        completion, reference, payload, lambda answer: float(_normalise(answer) == wanted), marks=extract.MARKUP
    )


def _normalise(text: str) -> list[str]:
    return unicodedata.normalize("NFC", text).split()


def verify_numeric(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Right if the answer is the same number as the reference.

    The numbers are compared as rationals, without tolerance: 0.5, 1/2, 50% and "0.50 kg" are equal, 0.3333 and 1/3
    are not. What is read, and the two exceptions (percent, decimals of six digits and more) are in `numerals`.

    Args:
        completion: what the policy wrote.
        reference: the number, as text.
        payload: may carry "answer_format", and "tolerance" and "relative_tolerance": numbers of at least 0. An
            answer is then right within tolerance + relative_tolerance * |reference|, bounds included.

    Raises:
        DataError: the reference is not a number, or a tolerance is not one.
    """
    wanted = numerals.parse_quantity(reference)
    if wanted is None:
        raise errors.DataError(f"gold={reference!r:.80} is not a number")
    tolerance = _read_tolerance(payload, "tolerance")
    allowed = tolerance + _read_tolerance(payload, "relative_tolerance") * abs(wanted.value)

    def score_answer(answer: str) -> float | None:
        found = numerals.parse_quantity(answer)
        if found is None:
            return None
        return float(numerals.equal(wanted, found, allowed))

    return judge(completion, reference, payload, score_answer)


def _read_tolerance(payload: Mapping[str, Any], field: str) -> fractions.Fraction:
    value = payload.get(field, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise errors.DataError(f"{field}={value!r:.80} is not a finite number of at least 0")
    return fractions.Fraction(value)
