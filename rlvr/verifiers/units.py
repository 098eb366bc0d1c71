"""Units of measure and of money: which words behind a number are a unit, and which units contradict each other.

A unit never scales a value: "5 km" reads as 5. It only matters where both answers name one: then units of which
none is common to both ("5.4 cents", "5.4 dollars") make the answers differ. Words that are no known unit
("12 apples") are accepted and contradict nothing.
"""

from __future__ import annotations

import re

_NAMES = {
    "meter": "m metre", "centimeter": "cm centimetre", "millimeter": "mm millimetre", "kilometer": "km kilometre",
    "inch": "in inche", "foot": "ft feet", "yard": "yd", "mile": "mi", "gram": "g gm", "kilogram": "kg kilo",
    "milligram": "mg", "ton": "tonne", "pound": "lb", "ounce": "oz", "second": "s sec", "minute": "min",
    "hour": "h hr", "day": "", "week": "", "month": "", "year": "yr", "liter": "l litre", "milliliter": "ml millilitre",
    "gallon": "gal", "quart": "", "pint": "", "cup": "", "degree": "deg circ", "radian": "rad", "dollar": "buck usd",
    "cent": "", "euro": "eur", "yen": "jpy", "rupee": "rs inr", "penny": "pennie pence", "newton": "", "joule": "",
    "watt": "", "volt": "", "ampere": "amp", "kelvin": "", "hertz": "hz", "acre": "", "hectare": "ha", "morning": "am",
    "afternoon": "pm",
}  # fmt: skip
_CANONICAL = {name: canonical for canonical, names in _NAMES.items() for name in (canonical, *names.split())}
_COMPOUND = {
    "mph": ("mile", "hour"),
    "kph": ("kilometer", "hour"),
    "kmh": ("kilometer", "hour"),
    "mps": ("meter", "second"),
}
SIGNS = {"$": "dollar", "€": "euro", "£": "sterling", "¥": "yen", "₹": "rupee"}
_FUNCTIONAL = {"per", "square", "squared", "cubic", "cubed", "sq", "cu", "of", "a", "each", "an"}

_POWERS = {"squared", "cubed"}  # of a unit, or else of the number

# Words behind a number that make it a sentence, or mathematics, and not a quantity.
_NOT_UNITS = frozenset(
    "is are was were be or and not no but if then the answer wrong right maybe than to from by either neither so "
    "sqrt sin cos tan sec csc cot log ln exp pi mod times plus minus over div theta alpha beta gamma lambda sigma "
    "infinity inf union percent pct percentage arcsin arccos arctan factorial negative below less dozen dozens score "
    "hundred thousand million billion trillion hundreds thousands millions billions trillions halves thirds fourths "
    "fifths sixths sevenths eighths ninths tenths hundredths thousandths".split()
)
_HOURS = re.compile(r"\b([ap])\.\s?m\b\.?", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]+")
_PHRASE = re.compile(
    r"[A-Za-z.]+(?:\s*(?:\^\s*\{?\s*[23]\s*\}?|/|-|\*|\\cdot)?\s*[A-Za-z.]+){0,4}\s*(?:\^\s*\{?\s*[23]\s*\}?)?"
)


def parse_unit(text: str, *, marked: bool = False) -> str | None:
    """Returns a unit's words in lower case, or None where the text is not one.

    Args:
        text: what stands behind a number.
        marked: whether LaTeX marked it as words (\\text); otherwise a word of one or two letters must be a known
            unit, for "5x" is a product.
    """
    text = join_hours(text.strip().lower())
    if not _PHRASE.fullmatch(text):
        return None
    words = _WORD.findall(text)
    if not _NOT_UNITS.isdisjoint(words) or (_FUNCTIONAL.issuperset(words) and not _POWERS.isdisjoint(words)):
        return None
    if not marked and any(len(word) < 3 and word not in _FUNCTIONAL and not _bases(word) for word in words):
        return None
    return " ".join(words)


def join_hours(text: str) -> str:
    """Writes a.m. and p.m. as am and pm."""
    return _HOURS.sub(r"\1m", text)


def contradict(one: str, other: str) -> bool:
    """Whether both units are known and have nothing in common."""
    bases = [[_bases(word) for word in unit.split() if word not in _FUNCTIONAL] for unit in (one, other)]
    if not all(side and all(side) for side in bases):
        return False
    first, second = ({base for word in side for base in word} for side in bases)
    return first.isdisjoint(second)


def _bases(word: str) -> tuple[str, ...]:
    """Returns the canonical units that one word names: none for a word that is no known unit."""
    if word in _COMPOUND:
        return _COMPOUND[word]
    found = _CANONICAL.get(word) or _CANONICAL.get(word.removesuffix("s"))
    return (found,) if found else ("sterling",) if word == "sterling" else ()
