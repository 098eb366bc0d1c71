"""Reading numbers out of text, exactly: every number becomes a `fractions.Fraction`.

Currency and percent signs are units here: they are dropped and never scale the value, so "$5", "5" and "5%"
all read as 5. A text that holds anything besides one number is not a number.
"""

from __future__ import annotations

import fractions
import re

# Longer texts are not answers, and Python refuses integers of more than 4300 digits anyway.
_MAX_CHARACTERS = 256

_MINUS = "\u2212"  # the typographic one
_UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_DECIMAL = re.compile(rf"{_UNSIGNED}(?:[eE][+-]?\d{{1,3}})?", re.ASCII)
_RATIO = re.compile(r"(\d+)\s*/\s*(\d+)|\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", re.ASCII)
_PREFIX = re.compile(r"([-+]?)\s*(?:\\?\$|[€£¥])?\s*([-+]?)\s*")
_LATEX = ((_MINUS, "-"), ("{,}", ","), ("\\!", ""), ("\\,", ""), ("\\%", "%"))

_SEPARATORS = re.compile(r"[,;]?\s+(?:or\s+|and\s+)?|[,;]")

# A number inside prose: not the tail of a word, and a minus only where it cannot be the operator of "10-3".
_IN_PROSE = re.compile(
    r"(?:(?<![\w)\]}%.])[-+])?\s?(?:\\?\$|[€£¥])?"
    r"(?:\\[dt]?frac\{\d+\}\{\d+\}"
    r"|(?<![A-Za-z_\d])(?:\d+/\d+|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?!\w))?)"
    r"|(?<![\w.])\.\d+)",
    re.ASCII,
)


def parse_number(text: str) -> fractions.Fraction | None:
    """Returns the number that `text` is, or None where it is anything else.

    Accepted besides plain digits: a sign, thousands commas in groups of three, decimals, an exponent of up to
    three digits, a ratio of integers ("3/4", "\\frac{3}{4}"), a currency sign before, a percent sign or a
    full stop after, `$...$` around.
    """
    if len(text) > _MAX_CHARACTERS:
        return None
    text = text.strip()
    for written, plain in _LATEX:
        text = text.replace(written, plain)
    if len(text) > 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    text = text.removesuffix(".").rstrip().removesuffix("%").rstrip()
    prefix = _PREFIX.match(text)
    assert prefix is not None  # every part of it is optional
    if prefix[1] and prefix[2]:
        return None
    magnitude = _parse_unsigned(text[prefix.end() :])
    return -magnitude if magnitude is not None and "-" in prefix[1] + prefix[2] else magnitude


def count_listed(text: str) -> int:
    """Returns how many numbers a text lists, or 0 where it holds anything else but commas, "or" and "and"."""
    items = [item for item in _SEPARATORS.split(text.strip()) if item]
    return len(items) if all(parse_number(item) is not None for item in items) else 0


def _parse_unsigned(text: str) -> fractions.Fraction | None:
    ratio = _RATIO.fullmatch(text)
    if ratio:
        numerator, denominator = (int(part) for part in ratio.groups() if part is not None)
        return fractions.Fraction(numerator, denominator) if denominator else None
    return fractions.Fraction(text.replace(",", "")) if _DECIMAL.fullmatch(text) else None


def find_last_number(text: str) -> str | None:
    """Returns the last number written anywhere in `text`, as written, or None."""
    for match in reversed(list(_IN_PROSE.finditer(text.replace(_MINUS, "-")))):
        if parse_number(match[0]) is not None:
            return match[0].strip()
    return None
