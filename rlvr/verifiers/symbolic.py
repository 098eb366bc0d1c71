"""math-verify (sympy) as the last resort: for small texts that have no structure of their own here.

Its own time limits are switched off: they rest on SIGALRM, which does not interrupt native code. Instead, nothing
reaches it that can grow: no tower of powers, no long number, no factorial, no deep nesting. What remains is
stopped by the pool's limit.
"""

from __future__ import annotations

import logging
import re
from typing import Any

_MAX_CHARACTERS, _MAX_DEPTH = 240, 6
_MAX_WORDS = 2  # of three letters and more, that no backslash makes a command
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
# Each makes a small text a large value or a long search.
_GROWING = re.compile(
    r"\d{16}|!|\d\s*_|\^[^^]{0,80}\^|\*\s*\*|\\(?:sum|prod|int|iint|oint|lim|binom)(?![A-Za-z])|\^\s*\{?\s*-?\s*\d{3}|__|\\x|import"
)


def warm_up() -> None:
    """Imports math-verify and builds its grammar, which takes seconds."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off
    equal("\\frac{1}{2} + A^{T}", "A^{T} + \\frac{1}{2}")


def is_small(text: str) -> bool:
    """Whether math-verify can be trusted to come back from a text."""
    if len(text) > _MAX_CHARACTERS or not text.isprintable() or _GROWING.search(text):
        return False
    if len(_WORD.findall(text)) > _MAX_WORDS + 2 * text.count("\\begin"):
        return False
    depth = deepest = 0
    for character in text:
        depth += {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(character, 0)
        deepest = max(deepest, depth)
        if depth < 0:
            return False
    return depth == 0 and deepest <= _MAX_DEPTH


def equal(gold: str, answer: str) -> bool:
    """Whether math-verify calls two answers equal; False where it cannot be asked or cannot read one of them."""
    if not (is_small(gold) and is_small(answer)):
        return False
    import math_verify  # seconds to import: only workers that need it pay

    wanted, found = _read(gold), _read(answer)
    return bool(wanted and found) and bool(math_verify.verify(wanted, found, timeout_seconds=None))


def _read(answer: str) -> list[Any]:
    """Parses an answer; the box tells math-verify that all of it is one, whichever notation it is in."""
    import math_verify

    return math_verify.parse(f"\\boxed{{{answer}}}", fallback_mode="no_fallback", parsing_timeout=None)
