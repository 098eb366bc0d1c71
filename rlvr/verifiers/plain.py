"""Verifiers that need no library: equality of texts, and equality of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlvr import types
from rlvr.verifiers import numerals
from rlvr.verifiers.judge import judge


def verify_exact(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Right if the answer is the reference, with runs of white space read as one space."""
    wanted = reference.split()
    return judge(completion, reference, payload, lambda answer: float(answer.split() == wanted))


def verify_numeric(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Right if the answer is the same rational number as the reference, exactly; see `numerals.parse_number`.

    Raises:
        ValueError: the reference is not a number.
    """
    wanted = numerals.parse_number(reference)
    if wanted is None:
        raise ValueError(f"the reference answer {reference!r} is not a number")

    def score_answer(answer: str) -> float | None:
        number = numerals.parse_number(answer)
        return None if number is None else float(number == wanted)

    return judge(completion, reference, payload, score_answer)
