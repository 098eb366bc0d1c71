"""Mathematical equivalence of an answer with the gold answer; see `equivalence` for what counts as the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlvr import types
from rlvr.verifiers import answers, equivalence, extract, symbolic
from rlvr.verifiers.judge import check_reference, judge


def warm_up() -> None:
    """Imports math-verify and builds its grammar, which takes seconds."""
    symbolic.warm_up()
    verify_math("\\boxed{\\sqrt{8} + x}", "x + 2\\sqrt{2}", {"answer_format": "boxed"})


def verify_math(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Right if the answer is mathematically equivalent to the reference (LaTeX or plain notation).

    Args:
        completion: what the policy wrote.
        reference: the gold answer; where it holds a box, its boxes are it, and where it ends in "#### x", x is.
        payload: may carry "answer_format"; see `judge`.

    Raises:
        DataError: the reference is empty.
    """
    gold = read_gold(check_reference(reference))

    def score_answer(answer: str) -> float | None:
        if len(answer) > answers.MAX_CHARACTERS:
            return None
        return float(equivalence.equal(gold, answer))

    return judge(completion, gold, payload, score_answer)


def read_gold(reference: str) -> str:
    """Returns the answer that a reference gives: itself, or what it marks as its answer."""
    marked = extract.extract_strict(reference, None, marks=("boxed", "hash"))
    return marked[0] if marked else reference.strip()
