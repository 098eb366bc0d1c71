"""One spelling for LaTeX and plain notation, and the cuts at commas, signs and words outside of any bracket.

Every function is linear in its text and raises nothing; the limits on what is worth reading are the callers'.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlvr.verifiers import characters

_SPACES = re.compile(r"(?<!\\)\\(?:[,;:>\s]|q?quad|(?:enspace|thinspace)(?![A-Za-z])|hspace\s*\{[^{}]*\})|~|\s+")
_DROPPED = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?|\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|boxed|fbox"
    r"|framebox|mathstrut|nonumber|notag)(?![A-Za-z])|\\!|(?<!\\)\\[()\[\]]|\\?\$|&(?==)"
)
_THOUSANDS = re.compile(r"(?<=\d)(?:\s?\{,\s?\}\s?|,\s?\\!\s?)(?=\d{3})")
_WORDS = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|hbox|textup)\s*\{")
_UPRIGHT = re.compile(r"\\(?:mathrm|operatorname\*?|rm)\s*\{\s*([^{}]*?)\s*\}")
_LETTERS = re.compile(r"\\(?:math(?:rm|bf|it|sf|cal|frak)|boldsymbol|bm|vec|overrightarrow|hat|rm)(?![A-Za-z])\s*")
_OVERESCAPED = re.compile(r"\\\\(?=[A-Za-z{}])")

_SYNONYMS = {
    "dfrac": "\\frac", "tfrac": "\\frac", "cfrac": "\\frac", "leq": "\\le", "leqslant": "\\le", "geq": "\\ge",
    "geqslant": "\\ge", "neq": "\\ne", "lt": "<", "gt": ">", "cdot": "*", "times": "*", "ast": "*", "div": "/",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "lbrack": "[", "rbrack": "]", "degree": "^\\circ",
    "colon": ":", "dbinom": "\\binom", "tbinom": "\\binom", "implies": "\\Rightarrow", "simeq": "\\approx",
    "varnothing": "\\emptyset", "emptyset": "\\emptyset", "ldots": "\\dots", "cdots": "\\dots", "dotsc": "\\dots",
    "land": "\\wedge", "lor": "\\vee", "infin": "\\infty", "varphi": "\\phi", "varepsilon": "\\epsilon",
    "arcsec": "\\arcsec", "lbrace": "\\{", "rbrace": "\\}", "langle": "(", "rangle": ")",
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_PLAIN_SIGNS = (("<=", "\\le "), (">=", "\\ge "), ("!=", "\\ne "), ("**", "^"), ("\\%", "%"), ("+/-", "\\pm "))
_EDGES = " \t\n.,;:"

FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh log ln lg exp sqrt gcd lcm min max det".split()
)
OPENING, CLOSING = "([{", ")]}"


def tidy(text: str) -> str:
    """Returns the text in the one spelling that `expression` and `answers` read.

    Math marks, sizes, boxes and invisible spaces are gone; synonyms of a command are that command; words keep
    their \\text{...}; unicode signs are commands; runs of white space are one space.
    """
    text = characters.write_as_latex(characters.clean(text))
    if "\\begin" not in text:
        text = _OVERESCAPED.sub(r"\\", text)  # doubled by one JSON encoding too many
    text = _THOUSANDS.sub("", text)
    text = _DROPPED.sub("", text)
    text = _LETTERS.sub("", _UPRIGHT.sub(_read_upright, text))
    text = _WORDS.sub(r"\\text{", text)
    text = _COMMAND.sub(_rename, text)
    for written, plain in _PLAIN_SIGNS:
        text = text.replace(written, plain)
    text = _SPACES.sub(" ", text)
    return text.lstrip(" =").rstrip(_EDGES)


def _read_upright(match: re.Match[str]) -> str:
    """Upright letters are a function's name, a constant (e, i, d), or words."""
    letters = match[1]
    if letters in FUNCTIONS:
        return f"\\{letters} "
    return letters if len(letters) == 1 else f"\\text{{{letters}}}"


def _rename(command: re.Match[str]) -> str:
    name = _SYNONYMS.get(command[1])
    if name is None:
        return command[0]
    following = command.string[command.end() : command.end() + 1]
    return name + " " if name[-1:].isalpha() and following.isalpha() else name


_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_LOOSE = re.compile(r"\s+(?![A-Za-z0-9.])|(?<![A-Za-z0-9.])\s+")


def write_words_plainly(text: str) -> str:
    """Returns a tidied text with the words of \\text{...} bare."""
    return " ".join(_TEXT.sub(r" \1 ", text).split())


def squeeze(text: str) -> str:
    """Returns a tidied text without the white space that parts nothing: what is equal now is equal as written."""
    return _LOOSE.sub("", text)


def scan(text: str) -> Iterator[tuple[int, str, int]]:
    """Yields (position, token, depth of brackets around it) for every character or command of a tidied text."""
    depth, i = 0, 0
    while i < len(text):
        end = i + 1
        if text[i] == "\\":
            end = i + 2
            while end < len(text) and text[i + 1].isalpha() and text[end].isalpha():
                end += 1
        token = text[i:end]
        if token in ("(", "[", "{", "\\{", "\\lfloor", "\\lceil"):
            yield i, token, depth
            depth += 1
        elif token in (")", "]", "}", "\\}", "\\rfloor", "\\rceil"):
            depth -= 1
            yield i, token, depth
        else:
            yield i, token, depth
        i = end


def split(text: str, separators: tuple[str, ...]) -> list[str]:
    """Cuts a tidied text at every separator (a character or a command) that stands outside of all brackets."""
    pieces, start = [], 0
    for position, token, depth in scan(text):
        if depth == 0 and token in separators:
            pieces.append(text[start:position])
            start = position + len(token)
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces]


def match_group(text: str) -> tuple[str, str, str] | None:
    """Returns (opening bracket, contents, closing bracket) if one pair of brackets holds all of a tidied text.

    Brackets need not be of one kind: a half-open interval is such a pair.
    """
    opening = next((bracket for bracket in ("\\{", *OPENING) if text.startswith(bracket)), None)
    closing = next((bracket for bracket in ("\\}", *CLOSING) if text.endswith(bracket)), None)
    if opening is None or closing is None or len(text) < len(opening) + len(closing):
        return None
    if (opening == "\\{") != (closing == "\\}") or (opening == "{") != (closing == "}"):
        return None
    last = len(text) - len(closing)
    if any(depth == 0 and 0 < position < last for position, _, depth in scan(text)):
        return None
    return opening, text[len(opening) : last].strip(), closing
