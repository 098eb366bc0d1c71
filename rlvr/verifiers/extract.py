"""Finding the answer in a completion: strictly, where the format puts it, and leniently, wherever it may be.

The strict answer earns the reward; the lenient one only tells apart a policy that cannot solve the task from
one that solves it and writes the answer elsewhere. Both look only behind the last `</think>`, and for marks only in
the last 200,000 characters there.

Boxes. The last box is the answer. Boxes side by side, with nothing but commas or "and" and "or" between them, are one
answer of several parts; where just one "and" joins two boxes, the second alone is another reading.

Guesses. More than three different answers in boxes (or behind "####", or behind "the answer is") are a list of guesses
and no answer, unless boxes side by side hold them all. Fewer are an answer and its corrections, or steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from rlvr import errors
from rlvr.verifiers import latex, numerals

# Ways to mark an answer, in the order in which they are looked for where no format was asked for.
MARKUP = ("boxed", "tag", "hash")
MARKS = (*MARKUP, "phrase", "closing")

MAX_CHARACTERS = 200_000
MAX_GUESSES = 3

_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"
_BOX_TOKEN = re.compile(r"\\{1,2}(?:boxed|fbox)(?:\s{0,9}(\{)|\s([^\s{}$\\.,]+))|[{}]|\\.", re.DOTALL)
_BESIDE = re.compile(
    r"(?:\s|[$,;.]|\\[,;:!()\[\] ]|\\q?quad(?![a-z])|\\(?:text|mbox|textrm)\s*\{\s*,?\s*(?:and|or)\s*\}"
    r"|\b(?:and|or)\b)*"
)
_TAG_OPEN, _TAG_CLOSE = "<answer>", "</answer>"
_HASH = "####"
_PHRASE = re.compile(r"answer[*_\s]*(?:is|:|=)[*_\s:=]*", re.IGNORECASE)
_PHRASE_END = re.compile(r"\n|\.(?:\s|$)|\s(?:because|since)\s")
_DISPLAY = re.compile(r"\s*(?:\$\$[^$]{1,2000}\$\$|\\\[(?:(?!\\\]).){1,2000}\\\])\s*", re.DOTALL)
_SENTENCE_GAP = re.compile(r"(?<=[.!?])(?:\$\$?|\\\]|\\\))?\s+(?=[A-Z<\\$])|<\|[^|]*\|>")
_PROSE_WORD = re.compile(r"[A-Za-z]{2,}")
_NO_PROSE = re.compile(r"\\(?![$%])|[{}^_|<>\[\]]")
_DIGIT = re.compile(r"\d")
_MAX_SENTENCE = 4000
_MAX_PHRASES = 50
_LAST_MATHS = re.compile(
    r"\$\$([^$]{1,2000})\$\$|(?<!\\)\$([^$\n]{1,2000})(?<!\\)\$|\\\[((?:(?!\\\]).){1,2000})\\\]|\\\(([^\n]{1,2000}?)\\\)",
    re.DOTALL,
)


def strip_reasoning(text: str) -> str:
    """Returns what follows the last `</think>`: the whole text where there is none."""
    return text.rpartition(_THINK_CLOSE)[2]


def extract_strict(
    text: str,
    answer_format: str | None = "bare",
    *,
    marks: Sequence[str] = ("boxed", "tag", "hash", "phrase", "closing"),
) -> tuple[str, ...]:
    """Returns the readings of the answer that stands where `answer_format` asks for it; () where none does.

    There is one reading, but for boxes joined by "and" (see above). Reasoning that was opened and never closed has
    no answer: whatever it says in passing was not given as one.

    Args:
        text: the completion.
        answer_format: a key of `ANSWER_FORMATS`, or None where no format was asked for: then the first of `marks`
            that the completion has, or else all of it.
        marks: the ways to mark an answer that count where no format was asked for.

    Raises:
        ConfigError: `answer_format` is none of these.
    """
    if answer_format is not None:
        errors.check_choice("answer_format", answer_format, ANSWER_FORMATS)
    text = strip_reasoning(text)
    if _THINK_OPEN in text:
        return ()
    places = marks if answer_format is None else () if answer_format == "bare" else (answer_format,)
    found = _first(_STRICT[place](text[-MAX_CHARACTERS:]) for place in places)
    if found is None:
        found = (text,) if answer_format in (None, "bare") else ()
    return tuple(reading.strip() for reading in found if reading.strip())


def extract_lenient(text: str, answer_format: str | None = "bare", *, numeric: bool = False) -> str | None:
    """Returns the answer wherever it is most plausibly written, or None where nothing is.

    Tried in this order: the format's own place, the other known places (box, tag, hash, "the answer is"),
    then the last number if `numeric`, else the last mathematics ($...$), else the last line that is not empty.

    Args:
        text: the completion.
        answer_format: as for `extract_strict`.
        numeric: whether the reference answer is a number; prose in these places is then searched for one, and passed
            over without one.

    Raises:
        ConfigError: `answer_format` is not a key of `ANSWER_FORMATS`.
    """
    if answer_format is not None:
        errors.check_choice("answer_format", answer_format, ANSWER_FORMATS)
    text = strip_reasoning(text)[-MAX_CHARACTERS:]
    # The sort is stable: the format's own place comes first, the others keep their order.
    for place in sorted(_LENIENT, key=lambda name: name != answer_format):
        found = _unwrap(_LENIENT[place](text) or "")
        if found and numeric:
            found = _find_number(found)
        if found:
            return found
    if numeric and (number := numerals.find_last_number(text)):
        return number
    if not numeric and (mathematics := _find_last_maths(text)):
        return mathematics
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (_unwrap(lines[-1]) or lines[-1]) if lines else None


def find_boxes(text: str) -> list[str]:
    """Returns the contents of every closed box, outermost ones only, in order."""
    return [text[start:end] for _, start, end, _ in _scan_boxes(text)[0]]


def find_tags(text: str) -> list[str]:
    """Returns the contents of every <answer>...</answer>, in order."""
    pieces = (piece.partition(_TAG_CLOSE) for piece in text.split(_TAG_OPEN)[1:])
    return [answer for answer, close, _ in pieces if close]


def find_hashes(text: str) -> list[str]:
    """Returns what follows every "####" on its line, in order."""
    return [piece.partition("\n")[0] for piece in text.split(_HASH)[1:]]


def count_phrases(text: str) -> int:
    """Returns how often "the answer is" or its like is said."""
    return sum(1 for _ in _PHRASE.finditer(text))


def count_different(answers: Iterable[str]) -> int:
    """Returns the number of answers that differ as texts, white space and spelling of LaTeX aside."""
    return len({latex.squeeze(latex.tidy(answer)) for answer in set(answers)})


def _first(found: Iterable[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    return next((readings for readings in found if readings is not None), None)


def _find_number(answer: str) -> str:
    """Returns the number in what was given as an answer: "" for prose without one, all of it where it is no prose."""
    value = answer.rpartition("=")[2].strip()
    if numerals.parse_quantity(answer) is not None or numerals.parse_quantity(value) is None:
        return (numerals.find_last_number(answer) or "") if _is_prose(answer) else answer
    return value


def _is_prose(text: str) -> bool:
    return len(_PROSE_WORD.findall(text)) > 1 and not _NO_PROSE.search(text)


def _unwrap(text: str) -> str:
    """Takes off the emphasis, code and math marks around an answer, and a full stop behind it."""
    text = text.strip().strip("*_`").removesuffix(".").strip("*_` ")
    if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def _scan_boxes(text: str) -> tuple[list[tuple[int, int, int, int]], bool]:
    """Returns (start, start of contents, end of contents, end) of the outermost closed boxes, and whether the last
    box that was opened was never closed.

    One pass with a stack of braces, so that a completion made of thousands of unclosed boxes costs no more.
    """
    closed: list[tuple[int, int, int, int]] = []
    open_braces: list[tuple[int, int]] = []  # where a box and its contents start, -1 for any other brace
    last_opened = -1
    for token in _BOX_TOKEN.finditer(text):
        if token[1]:
            last_opened = token.start()
            open_braces.append((last_opened, token.end()))
        elif token[2]:
            last_opened = token.start()
            closed.append((last_opened, token.start(2), token.end(), token.end()))
        elif token[0] == "{":
            open_braces.append((-1, -1))
        elif token[0] == "}" and open_braces:
            start, contents = open_braces.pop()
            if start >= 0:
                closed.append((start, contents, token.start(), token.end()))
    unclosed = any(start == last_opened >= 0 for start, _ in open_braces)
    closed.sort()
    outermost: list[tuple[int, int, int, int]] = []
    for box in closed:
        if not outermost or box[0] >= outermost[-1][3]:
            outermost.append(box)
    return outermost, unclosed


def _find_box_strict(text: str) -> tuple[str, ...] | None:
    found, unclosed = _scan_boxes(text)
    if not found or unclosed:
        return () if unclosed else None
    contents = [text[start:end] for _, start, end, _ in found]
    together, first, joint = [contents[-1]], len(found) - 1, ""
    while first and _BESIDE.fullmatch(text, found[first - 1][3], found[first][0]):
        first -= 1
        joint = text[found[first][3] : found[first + 1][0]]
        together.insert(0, contents[first])
    if count_different(contents) > MAX_GUESSES and count_different(together) < count_different(contents):
        return ()
    if count_different(together) == 1:
        return (together[-1],)
    joined = ", ".join(together)
    return (joined, together[-1]) if len(together) == 2 and re.search(r"\band\b", joint) else (joined,)


def _find_box_lenient(text: str) -> str | None:
    found, _ = _scan_boxes(text)
    return text[found[-1][1] : found[-1][2]] if found else None


def _find_tag_strict(text: str) -> tuple[str, ...] | None:
    opened, closed = text.count(_TAG_OPEN), text.count(_TAG_CLOSE)
    start, end = text.find(_TAG_OPEN) + len(_TAG_OPEN), text.find(_TAG_CLOSE)
    if not opened and not closed:
        return None
    return (text[start:end],) if opened == closed == 1 and start <= end else ()


def _find_tag_lenient(text: str) -> str | None:
    lowered = text.lower() if len(text.lower()) == len(text) else text  # offsets must stay those of `text`
    end = lowered.rfind(_TAG_CLOSE)
    end = len(text) if end < 0 else end
    start = lowered.rfind(_TAG_OPEN, 0, end)
    return text[start + len(_TAG_OPEN) : end] if start >= 0 else None


def _find_hash_strict(text: str) -> tuple[str, ...] | None:
    """The last line, behind the mark: a mark before other lines is a heading."""
    _, mark, rest = text.rpartition(_HASH)
    if not mark or "\n" in rest.strip():
        return None
    return (rest,) if count_different(find_hashes(text)) <= MAX_GUESSES else ()


def _find_hash_lenient(text: str) -> str | None:
    _, mark, rest = text.rpartition(_HASH)
    return rest.strip().partition("\n")[0] if mark else None


def _find_phrases(text: str) -> list[str]:
    """Returns what follows the last few times that "the answer is" or its like is said."""
    said = list(_PHRASE.finditer(text))[-_MAX_PHRASES:]
    return [_unwrap(_PHRASE_END.split(text[match.end() : match.end() + 2000], maxsplit=1)[0]) for match in said]


def _find_phrase_strict(text: str) -> tuple[str, ...] | None:
    found = [answer for answer in _find_phrases(text) if answer]
    if not found:
        return None
    if count_different(found) > MAX_GUESSES:
        return ()
    return (found[-1], *(_find_closing(found[-1]) or ()))  # "Answer: the largest n is 34"


def _find_phrase_lenient(text: str) -> str | None:
    return next(iter(_find_phrases(text)[-1:]), None)


def _find_closing(text: str) -> tuple[str, ...] | None:
    """Returns the one mathematical expression, or else the one number, of the last sentence, if that is prose."""
    text = _DISPLAY.sub(lambda match: " " + match[0].strip().replace("\n", " ") + " ", text[-_MAX_SENTENCE:])
    line = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    sentence = next((part for part in reversed(_SENTENCE_GAP.split(line.strip())) if part), "")
    found = list(_LAST_MATHS.finditer(sentence))
    prose = _LAST_MATHS.sub(" ", sentence)
    before = sentence[: found[0].start()] if found else ""
    if not _PROSE_WORD.search(before) and len(_PROSE_WORD.findall(prose)) < 2:
        return None
    if _NO_PROSE.search(prose):  # mathematics without marks: what part of it would be the answer?
        return None
    expressions = [next(group for group in match.groups() if group is not None) for match in found]
    valued = [expression for expression in expressions if _DIGIT.search(expression)]
    if _DIGIT.search(prose):  # $n$ and the like only name what the number is
        values = numerals.find_numbers(prose.rpartition("=")[2]) if not valued else []
    else:
        values = valued or expressions
    return (values[0],) if len(values) == 1 else None


def _find_last_maths(text: str) -> str | None:
    found = list(_LAST_MATHS.finditer(text[-MAX_CHARACTERS // 10 :]))
    return next(group.strip() for group in found[-1].groups() if group is not None) if found else None


ANSWER_FORMATS = ("bare", "boxed", "tag", "hash")

_STRICT: dict[str, Callable[[str], tuple[str, ...] | None]] = {
    "boxed": _find_box_strict,
    "tag": _find_tag_strict,
    "hash": _find_hash_strict,
    "phrase": _find_phrase_strict,
    "closing": _find_closing,
}
_LENIENT: dict[str, Callable[[str], str | None]] = {
    "boxed": _find_box_lenient,
    "tag": _find_tag_lenient,
    "hash": _find_hash_lenient,
    "phrase": _find_phrase_lenient,
}

# Every answer of a kind, not only the one that counts: several that differ are a sign of guessing.
FILLED_PLACES: tuple[Callable[[str], list[str]], ...] = (find_boxes, find_tags, find_hashes)
