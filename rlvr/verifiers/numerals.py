"""Reading numbers out of text, exactly: every number becomes a `fractions.Fraction`.

Currency signs, percent signs and units are never part of the value: "$5", "5", "5 km" and "5%" all read as 5. Two
quantities are equal if their values are, with two additions. Where just one of them has a percent sign, it may
also mean hundredths (50% and 0.5). And a decimal of at least six digits after the point stands for the number that
it rounds or truncates, if that number has no such decimal itself (0.333333 and 1/3, but not 0.3333).
"""

from __future__ import annotations

import dataclasses
import fractions
import re

from rlvr.verifiers import characters, units

# Python refuses integers of more than 4300 digits; longer texts are not numbers that anybody answers with.
_MAX_CHARACTERS = 4000
_ROUNDING_PLACES = 6

_UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_DECIMAL = re.compile(rf"({_UNSIGNED})(?:[eE]([+-]?\d{{1,3}})(?!\w))?", re.ASCII)
_SCIENTIFIC = re.compile(
    rf"(?:({_UNSIGNED})\s*(?:\\times|\\cdot|[*x])\s*)?10\s*(?:\^|\*\*)\s*(?:\{{\s*([+-]?\d{{1,3}})\s*\}}|([+-]?\d{{1,3}}))",
    re.ASCII,
)
_PART = r"(?:\{\s*(\d+)\s*\}|(\d))"
_FRACTION = re.compile(
    rf"(?:(\d+)\s*)?\\frac\s*{_PART}\s*{_PART}|(?:(\d+)(?:\s+|\s+and\s+))?(\d+)\s*/\s*(\d+)", re.ASCII
)
_PREFIX = re.compile(r"([-+]?)\s*(?:(?:US)?(\\?\$|[€£¥₹])|USD\b|EUR\b)?\s*([-+]?)\s*")
_SCALE = re.compile(r"\s*(thousand|million|billion|trillion)\b", re.IGNORECASE)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PERCENT = re.compile(r"(?:%|per\s?cent|percentage(?: points?)?|pct\.?)", re.IGNORECASE)
_DEGREES = re.compile(r"(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree)\s*[CF]?")
_MARKED = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf)?|math(?:rm|bf|sf)|mbox|hbox|operatorname|unit)\s*\{([^{}]*)\}")
_SIGN_BEHIND = re.compile(r"\\?([$€£¥₹])")

_LATEX = (
    ("{,}", ","), ("\\!", ""), ("\\%", "%"), ("\\,", " "), ("\\;", " "), ("\\:", " "), ("\\ ", " "),
    ("~", " "), ("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\\cfrac", "\\frac"), ("\\left", ""), ("\\right", ""),
)  # fmt: skip
_GROUPED = re.compile(r"(?<=,) +(?=\d{3}\b)")

_SEPARATORS = re.compile(r"[,;]?\s+(?:or\s+|and\s+)?|[,;]")

# A number inside prose: not the tail of a word, and a minus only where it cannot be the operator of "10-3".
_IN_PROSE = re.compile(
    r"(?:(?<![\w)\]}%.])[-+])?\s?(?:\\?\$|[€£¥₹])?"
    r"(?:(?:(?<![\w.,])\d+\s?)?\\[dtc]?frac\{\d+\}\{\d+\}"
    r"|(?<![A-Za-z_\d])(?:\d+/\d+|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?!\w))?)"
    r"|(?<![\w.])\.\d+)(?:\s?\\?%)?",
    re.ASCII,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Quantity:
    """A number with what is written around it.

    Attributes:
        value: the number; the percent sign, currency and unit do not scale it.
        percent: whether a percent sign or word stands behind it.
        unit: the words of its unit or the name of its currency, in lower case; "" where there is none.
        places: digits after the decimal point as written; None for a fraction or a power of ten.
    """

    value: fractions.Fraction
    percent: bool = False
    unit: str = ""
    places: int | None = 0


def parse_quantity(text: str) -> Quantity | None:
    """Returns the quantity that `text` is, or None where it is anything else.

    Accepted besides plain digits (of any script): a sign, thousands separated by commas or spaces in groups of
    three, decimals, an exponent or power of ten of up to three digits, "million" and its like, fractions and mixed
    numbers ("3/4", "2 3/4", "\\frac{3}{4}", "2½"), a currency sign before or behind, percent, degrees or a unit
    behind, a full stop, `$...$` or `\\(...\\)` around it.
    """
    if len(text) > _MAX_CHARACTERS:
        return None
    text = _tidy(text)
    prefix = _PREFIX.match(text)
    assert prefix is not None  # every part of it is optional
    if prefix[1] and prefix[3]:
        return None
    magnitude = _read_magnitude(text, prefix.end())
    if magnitude is None:
        return None
    value, places, end = magnitude
    suffix = _read_suffix(text[end:])
    if suffix is None:
        return None
    percent, unit = suffix
    if prefix[2]:
        unit = unit or units.SIGNS[prefix[2][-1]]
    return Quantity(-value if "-" in prefix[1] + prefix[3] else value, percent, unit, places)


def _tidy(text: str) -> str:
    text = characters.write_as_latex(characters.clean(text)).strip()
    for left, right in (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$")):
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            text = text[len(left) : -len(right)].strip()
            break
    joined = ",\\!" in text.replace(" ", "")
    for written, plain in _LATEX:
        text = text.replace(written, plain)
    if joined:
        text = _GROUPED.sub("", text)  # "11,\! 111" is one number, "11, 111" is two
    return text.strip().removesuffix(".").rstrip()


def _read_magnitude(text: str, start: int) -> tuple[fractions.Fraction, int | None, int] | None:
    """Returns the unsigned number at `start`, its decimal places, and where it ends."""
    if fraction := _FRACTION.match(text, start):
        whole, *parts = (int(part) for part in fraction.groups(default="") if part) if fraction[0] else (0,)
        if len(parts) == 1:  # no whole number before it
            whole, parts = 0, [whole, *parts]
        numerator, denominator = parts
        if not denominator or (whole and numerator >= denominator):
            return None
        return whole + fractions.Fraction(numerator, denominator), None, fraction.end()
    if power := _SCIENTIFIC.match(text, start):
        coefficient = fractions.Fraction(re.sub("[ ,]", "", power[1] or "1"))
        return coefficient * fractions.Fraction(10) ** int(power[2] or power[3]), None, power.end()
    decimal = _DECIMAL.match(text, start)
    if decimal is None:
        return None
    digits = re.sub("[ ,]", "", decimal[1])
    value = fractions.Fraction(digits) * fractions.Fraction(10) ** int(decimal[2] or 0)
    places = None if decimal[2] else len(digits.partition(".")[2])
    if scale := _SCALE.match(text, decimal.end()):
        return value * _SCALES[scale[1].lower()], None, scale.end()
    return value, places, decimal.end()


def _read_suffix(text: str) -> tuple[bool, str] | None:
    """Returns (percent, unit) of what stands behind a number, or None where it is neither."""
    text = text.strip()
    if not text:
        return False, ""
    if sign := _SIGN_BEHIND.fullmatch(text):
        return False, units.SIGNS[sign[1]]
    if degrees := _DEGREES.match(text):
        text = text[degrees.end() :].strip()
        return (False, "degree") if not text else None
    plain = _MARKED.sub(r" \1 ", text).strip()
    if _PERCENT.fullmatch(plain):
        return True, ""
    unit = units.parse_unit(plain, marked=plain != text)
    return None if unit is None else (False, unit)


def equal(gold: Quantity, answer: Quantity, tolerance: fractions.Fraction = fractions.Fraction(0)) -> bool:
    """Whether two quantities are the same; see the module's docstring. They may differ by the tolerance."""
    if gold.unit and answer.unit and units.contradict(gold.unit, answer.unit):
        return False
    pairs = [(gold, answer)]
    if gold.percent and not answer.percent:
        pairs.append((_as_hundredths(gold), answer))
    if answer.percent and not gold.percent:
        pairs.append((gold, _as_hundredths(answer)))
    return any(
        abs(one.value - other.value) <= tolerance or rounds(one.value, other) or rounds(other.value, one)
        for one, other in pairs
    )


def _as_hundredths(quantity: Quantity) -> Quantity:
    return Quantity(quantity.value / 100, places=None)


def rounds(exact: fractions.Fraction, written: Quantity) -> bool:
    """Whether `written` is a decimal of enough digits that rounds or truncates a number with no such decimal."""
    places = written.places
    if places is None or places < _ROUNDING_PLACES:
        return False
    scale = 10**places
    if abs(written.value) * scale < 10 ** (_ROUNDING_PLACES - 1):  # too few digits that say anything
        return False
    missing = (exact - written.value) * scale
    truncated = abs(missing) < 1 and abs(written.value) < abs(exact)
    return (exact * scale).denominator != 1 and (truncated or abs(missing) <= fractions.Fraction(1, 2))


def count_listed(text: str) -> int:
    """Returns how many numbers a text lists, or 0 where it holds anything else but commas, "or" and "and"."""
    items = [item for item in _SEPARATORS.split(text.strip()) if item]
    return len(items) if all(parse_quantity(item) is not None for item in items) else 0


def find_numbers(text: str) -> list[str]:
    """Returns the numbers written anywhere in `text`, as written (in ASCII digits), in their order."""
    found = (match[0] for match in _IN_PROSE.finditer(characters.clean(text)))
    return [number.strip() for number in found if parse_quantity(number) is not None]


def find_last_number(text: str) -> str | None:
    """Returns the last of `find_numbers`, or None."""
    for match in reversed(list(_IN_PROSE.finditer(characters.clean(text)))):
        if parse_quantity(match[0]) is not None:
            return match[0].strip()
    return None
