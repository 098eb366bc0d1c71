"""The structure of a mathematical answer: what is a list, a set, a pair, an interval, a matrix, a relation, words.

`parse` reads a text into an `Answer`; `equivalence` compares two of them. A text that is nothing of the kind is kept
as it stands ("verbatim") and equals only the same text.
"""

from __future__ import annotations

import dataclasses
import functools
import re

from rlvr.verifiers import expression, latex, numerals, units

MAX_CHARACTERS = 4000  # a longer text is not an answer
_MAX_DEPTH = 8
_MAX_ITEMS = 64

_AND_OR = re.compile(
    r"(?:,\s*)?(?:\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z])(?:and|or)(?![A-Za-z])|\\(?:vee|wedge)(?![A-Za-z]))"
)
_MATRIX = re.compile(r"\\begin\{([bpvBV]?(?:small)?matrix|array)\}(?:\{[lcr|\s]*\})?(.*)\\end\{\1\}", re.DOTALL)
_LETTERS_IN_TEXT = re.compile(r"\\text\{\s*([A-Za-z](?:\s*,\s*[A-Za-z])+)\s*\}")
_REALS = re.compile(r"\\mathbb\s*\{?R\}?|(?:\\text\{)?all real(?: numbers)?s?\}?", re.IGNORECASE)
_MARKED_UNIT = re.compile(r"(.*\S)\s*\\text\{([^{}]*)\}\s*(?:\^\s*\{?[23]\}?)?", re.DOTALL)
_PLAIN_UNIT = re.compile(r"(.*[\d)}])\s+([A-Za-z][A-Za-z. ]*[A-Za-z](?:\s*\^\s*\{?[23]\}?)?)", re.DOTALL)
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)")
_ANGULAR = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)")
_PROSE = re.compile(r"[A-Za-z(][A-Za-z\s.,:;'()-]*")
_LONG_RUN = re.compile(r"[A-Za-z]{3,}")
_PLAIN_NAME = re.compile(r"(?:infinity|sqrt|theta|alpha|beta|sin|cos|tan|cot|sec|csc|log|exp|arc|inf|ln|pi)+[A-Za-z]?")
_QUIET = re.compile(r"[\"'`*_{}\[\]()!?\\]|[.,;](?!\d)|(?<!\d)[.,;]")
_RELATIONS = ("=", "<", ">", "\\le", "\\ge", "\\ne", "\\approx", "\\in", "\\equiv", "\\sim", "\\cong")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One parsed answer.

    Attributes:
        kind: "list" (no brackets, any order), "set", "tuple" (also an interval), "union", "matrix", "relation",
            "ratio" (3:4, and a time), "expression", "words" or "verbatim".
        text: the tidied and squeezed text: answers with the same text are equal.
        items: the parts of a compound; the rows of a matrix are "tuple" answers.
        marks: the brackets of a tuple, the signs between the sides of a relation.
        tree: of an expression.
        quantity: of an expression that is a bare number.
        unit: the unit written behind an expression, "" for none.
    """

    kind: str
    text: str
    items: tuple[Answer, ...] = ()
    marks: tuple[str, ...] = ()
    tree: expression.Tree | None = None
    quantity: numerals.Quantity | None = None
    unit: str = ""


@functools.lru_cache(maxsize=512)
def parse(text: str) -> Answer:
    """Returns the structure of an answer as it was written. Raises nothing."""
    return _parse(latex.tidy(text), 0)


def words(answer: Answer) -> str:
    """Returns what an answer says as words, in lower case, without punctuation and white space."""
    text = answer.text
    return "".join(_QUIET.sub(" ", units.join_hours(latex.write_words_plainly(text))).casefold().split())


def _parse(text: str, depth: int) -> Answer:
    text = text.strip()
    squeezed = latex.squeeze(text)
    if depth > _MAX_DEPTH or len(text) > MAX_CHARACTERS or not text:
        return Answer("verbatim", squeezed)
    matrix = _MATRIX.fullmatch(text)
    if matrix is not None and "\\begin" not in matrix[2]:
        return _parse_matrix(matrix[2], squeezed, depth)
    if "\\begin" in text or "\\end" in text:
        return Answer("verbatim", squeezed)
    text = text.rpartition("\\Rightarrow")[2].strip()
    if letters := _LETTERS_IN_TEXT.fullmatch(text):
        text = letters[1]
    if _REALS.fullmatch(text):
        return _parse("(-\\infty,\\infty)", depth + 1)
    for parse_form in (_parse_list, _parse_relation, _parse_union, _parse_ratio, _parse_group, _parse_signs):
        answer = parse_form(text, squeezed, depth)
        if answer is not None:
            return answer
    return _parse_leaf(text, squeezed)


def _parse_matrix(body: str, squeezed: str, depth: int) -> Answer:
    rows = [row for row in re.split(r"\\\\(?:\s*\[[^\]]*\])?", body.replace("\\hline", "")) if row.strip()]
    cells = [tuple(_parse(cell, depth + 1) for cell in latex.split(row, ("&",))) for row in rows]
    if not cells or sum(map(len, cells)) > _MAX_ITEMS or len(set(map(len, cells))) != 1:
        return Answer("verbatim", squeezed)
    return Answer("matrix", squeezed, tuple(Answer("tuple", squeezed, row, ("[", "]")) for row in cells))


def _parse_list(text: str, squeezed: str, depth: int) -> Answer | None:
    """Reads "1, 2 and 3", "x = 1 or x = 2", "n = 1, 2, 3"."""
    pieces = latex.split(_AND_OR.sub(",", text), (",", ";"))
    if len(pieces) == 1:
        return None
    pieces = pieces[:-1] if not pieces[-1] else pieces
    if not all(pieces) or len(pieces) > _MAX_ITEMS:
        return Answer("verbatim", squeezed)
    first = latex.split(pieces[0], ("=",))
    if len(first) == 2 and len(pieces) > 1 and not any(_find_relations(piece) for piece in pieces[1:]):
        pieces[0] = first[1]
    items = tuple(_parse(piece, depth + 1) for piece in pieces)
    return items[0] if len(items) == 1 else Answer("list", squeezed, items)


def _find_relations(text: str) -> list[str]:
    return [token for _, token, depth in latex.scan(text) if depth == 0 and token in _RELATIONS]


def _parse_relation(text: str, squeezed: str, depth: int) -> Answer | None:
    signs = _find_relations(text)
    if not signs:
        return None
    sides = latex.split(text, _RELATIONS)
    if len(sides) > 12 or not all(sides):
        return Answer("verbatim", squeezed)
    return Answer("relation", squeezed, tuple(_parse(side, depth + 1) for side in sides), tuple(signs))


def _parse_union(text: str, squeezed: str, depth: int) -> Answer | None:
    pieces = latex.split(text, ("\\cup",))
    if len(pieces) == 1:
        pieces = re.split(r"(?<=[)\]])\s*U\s*(?=[(\[])", text)
    if len(pieces) == 1:
        return None
    if not all(pieces) or len(pieces) > _MAX_ITEMS:
        return Answer("verbatim", squeezed)
    return Answer("union", squeezed, tuple(_parse(piece, depth + 1) for piece in pieces))


def _parse_ratio(text: str, squeezed: str, depth: int) -> Answer | None:
    pieces = latex.split(text, (":",))
    if len(pieces) == 1 or not all(pieces) or len(pieces) > _MAX_ITEMS or is_prose(text) or "\\text" in text:
        return None
    return Answer("ratio", squeezed, tuple(_parse(piece, depth + 1) for piece in pieces))


def _parse_group(text: str, squeezed: str, depth: int) -> Answer | None:
    group = latex.match_group(text)
    if group is None:
        return None
    opening, inside, closing = group
    if opening == "{":
        return _parse(inside, depth + 1)
    pieces = latex.split(inside, (",", ";"))
    if opening != "\\{" and len(pieces) == 1:
        inner = _parse(inside, depth + 1)
        whole = inner.kind == "matrix" or (inner.kind == "words" and (opening, closing) == ("(", ")"))
        return inner if whole else None  # else brackets of an expression
    if not all(pieces) or len(pieces) > _MAX_ITEMS:
        return Answer("verbatim", squeezed)
    items = tuple(_parse(piece, depth + 1) for piece in pieces)
    if opening != "\\{":
        return Answer("tuple", squeezed, items, (opening, closing))
    # {1 ± √5, -2} holds three numbers
    flat = [part for item in items for part in (item.items if item.kind == "list" else (item,))]
    return Answer("set", squeezed, tuple(flat))


def _parse_signs(text: str, squeezed: str, depth: int) -> Answer | None:
    """Reads "1 ± √2" as the list of both."""
    if "\\pm" not in text and "\\mp" not in text:
        return None
    upper = text.replace("\\pm", "+").replace("\\mp", "-")
    lower = text.replace("\\pm", "-").replace("\\mp", "+")
    return Answer("list", squeezed, (_parse(upper, depth + 1), _parse(lower, depth + 1)))


def _parse_leaf(text: str, squeezed: str) -> Answer:
    if is_prose(text):
        return Answer("words", squeezed)
    number, unit = _take_unit(text)
    if "\\circ" in number and not _ANGULAR.search(number):
        number, unit = _DEGREES.sub("", number).strip(), unit or "degree"
    try:
        tree = expression.parse(number)
    except expression.ParseError:
        return Answer("words" if "\\text" in text else "verbatim", squeezed)
    return Answer("expression", squeezed, (), (), tree, numerals.parse_quantity(number), unit)


def is_prose(text: str) -> bool:
    """Whether a tidied text is words and not letters multiplied: "Evelyn", "all of them", but not "xy" or "sin x"."""
    if text.startswith("\\text{") and text.endswith("}") and text.count("\\text{") == 1:
        text = text[6:-1].strip()
        if text[:1].isdigit():
            return False
        if not _PROSE.fullmatch(text):
            return bool(text) and not any(character.isdigit() for character in text)
        return True
    return bool(_PROSE.fullmatch(text)) and any(not _PLAIN_NAME.fullmatch(run) for run in _LONG_RUN.findall(text))


def _take_unit(text: str) -> tuple[str, str]:
    """Returns an expression without the unit behind it, and that unit."""
    if match := _MARKED_UNIT.fullmatch(text):
        unit = units.parse_unit(match[2], marked=True)
        if unit is not None:
            return match[1], unit
        if re.fullmatch(r"\s*per\s?cent(?:age)?\s*|\s*%\s*|\s*pct\s*", match[2]):
            return match[1] + "%", ""
    elif match := _PLAIN_UNIT.fullmatch(text):
        unit = units.parse_unit(match[2])
        if unit is not None and len(match[2]) > 1:
            return match[1], unit
    return text, ""
