"""Mathematical equivalence, by math-verify (sympy).

Its own time limits are switched off: they rest on SIGALRM, which does not interrupt native code, and the pool
has a limit that does. So never call this outside a worker on text that a policy wrote.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from rlvr import types
from rlvr.verifiers.judge import judge

_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}")


def warm_up() -> None:
    """Imports math-verify and builds its grammar, which takes seconds."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off
    verify_math("\\boxed{\\frac{1}{2}}", "0.5", {"answer_format": "boxed"})


def verify_math(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Right if the answer is mathematically equivalent to the reference (LaTeX or plain notation).

    Raises:
        ValueError: the reference cannot be read as mathematics.
    """
    import math_verify  # seconds to import: only workers that need it pay

    wanted = _read(reference)
    if not wanted:
        raise ValueError(f"the reference answer {reference!r} cannot be read as mathematics")

    def score_answer(answer: str) -> float | None:
        # Words would be read as products of letters, in which \text{Evelyn} and Evelyn differ.
        if _plain_text(answer) == _plain_text(reference):
            return 1.0
        found = _read(answer)
        return float(math_verify.verify(wanted, found, timeout_seconds=None)) if found else None

    return judge(completion, reference, payload, score_answer)


def _read(answer: str) -> list[Any]:
    """Parses an answer; the box tells math-verify that all of it is one, whichever notation it is in."""
    import math_verify

    return math_verify.parse(f"\\boxed{{{_strip_math_marks(answer)}}}", parsing_timeout=None)


def _strip_math_marks(answer: str) -> str:
    answer = answer.strip()
    for left, right in (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$")):
        if len(answer) > len(left) + len(right) and answer.startswith(left) and answer.endswith(right):
            return answer[len(left) : -len(right)].strip()
    return answer


def _plain_text(answer: str) -> str:
    return " ".join(_TEXT.sub(r" \1 ", _strip_math_marks(answer)).casefold().split())
