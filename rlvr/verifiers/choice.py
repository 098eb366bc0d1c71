"""Multiple choice: the letter of an option, or the option's own text."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Mapping
from typing import Any

from rlvr import errors, types
from rlvr.verifiers import characters, extract, latex
from rlvr.verifiers.judge import check_reference, judge

_DEFAULT_LETTERS = string.ascii_uppercase[:10]
_MAX_CHARACTERS = 2000  # a longer text is no choice

# "B", "(B)", "B.", "option B", "B) Paris"
_LETTER = re.compile(r"(?:(?:option|choice|answer)\s*:?\s*)?[(\[]?\s*([A-Za-z])\s*[)\]]?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"[(\[]?\s*([A-Za-z])\s*(?:[)\]]\s*[.:]?|[.:]|-(?=\s))\s*(\S.*)", re.DOTALL)
# Letters in prose: in brackets, after "option", or alone; "A" and "I" alone are also words.
_IN_PROSE = re.compile(
    r"[(\[]([A-Za-z])[)\]]|\b(?:[Oo]ption|[Cc]hoice)\s+([A-Za-z])\b|(?<![\w'$\\-])([B-HJ-Z])(?![\w'-])"
    r"|(?<![\w'$\\-])(A)(?![\w'-]|\s+(?!(?:or|and|is)\b)[a-z])"
)
_LEADING = re.compile(r"\s*[*_]*[(\[]?([A-Z])(?:[)\].:]|[*_]*\s*(?:\n|$))")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of one question.

    Attributes:
        letters: those that may be chosen.
        texts: the normalised text of each letter; empty where the row does not tell them.
        gold: the right letter.
    """

    letters: str
    texts: Mapping[str, str]
    gold: str


def verify_choice(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Right if the answer names the right option, and no other.

    Strictly, the answer is a letter ("B", "(b)", "B.", "option B"), a letter with its option's text ("B. Paris"), or,
    if the payload has "choices", the text of one option. A letter beside the text of another option, or two letters,
    are a contradiction and wrong. Leniently, the one letter in brackets, after "option" or alone that the text names
    last, or the letter that it begins with.

    Args:
        completion: what the policy wrote.
        reference: the right option: its letter or, with "choices", its text.
        payload: may carry "answer_format" (see `judge`) and "choices": a list of texts (A, B, ... in order) or an
            object from letters to texts.

    Raises:
        DataError: the reference is no option, or "choices" is malformed.
    """
    options = read_options(check_reference(reference), payload.get("choices"))

    def score_answer(answer: str) -> float | None:
        letter = read_letter(answer, options)
        return None if letter is None else float(letter == options.gold)

    verdict = judge(completion, reference, payload, score_answer, marks=(*extract.MARKUP, "phrase"))
    if verdict.score == 1 or verdict.parts["lenient"] == 1:
        return verdict
    lenient = float(find_letter(extract.strip_reasoning(completion), options) == options.gold)
    return dataclasses.replace(verdict, parts={**verdict.parts, "lenient": lenient})


def read_options(reference: str, choices: Any) -> Options:
    """Returns the options of a row. Raises DataError."""
    if choices is None:
        gold = _LETTER.fullmatch(_tidy(reference))
        if gold is None:
            raise errors.DataError(
                f'gold={reference!r:.80} is not the letter of an option (accepted: a letter, or a text of "choices")'
            )
        letter = gold[1].upper()
        return Options(letter if letter not in _DEFAULT_LETTERS else _DEFAULT_LETTERS, {}, letter)
    if isinstance(choices, list):
        choices = dict(zip(string.ascii_uppercase, choices, strict=False)) if len(choices) <= 26 else None
    named = isinstance(choices, Mapping) and all(
        isinstance(letter, str) and len(letter) == 1 and letter.isalpha() and isinstance(text, str | int | float)
        for letter, text in choices.items()
    )
    if not named or not choices:
        raise errors.DataError(
            f"choices={choices!r:.80} cannot be used (accepted: a list of up to 26 texts, or an object of letter: text)"
        )
    texts = {letter.upper(): _fold(str(text)) for letter, text in choices.items()}
    wanted = _LETTER.fullmatch(_tidy(reference))
    golds = [letter for letter, text in texts.items() if text == _fold(reference)]
    if not golds and wanted is not None and wanted[1].upper() in texts:
        golds = [wanted[1].upper()]
    if not golds:
        raise errors.DataError(f"gold={reference!r:.80} is neither a letter nor a text of choices={list(texts)}")
    return Options("".join(texts), texts, golds[0])


def read_letter(answer: str, options: Options) -> str | None:
    """Returns the letter that an answer names, "" for a contradiction, None where it is no choice at all."""
    if len(answer) > _MAX_CHARACTERS:
        return None
    text = _tidy(answer)
    by_text = [letter for letter, option in options.texts.items() if option and option == _fold(text)]
    if by_text:
        return options.gold if options.gold in by_text else by_text[0]
    if letter := _LETTER.fullmatch(text):
        return letter[1].upper() if letter[1].upper() in options.letters else None
    if named := _LETTER_AND_TEXT.fullmatch(text):
        letter_named, rest = named[1].upper(), _fold(named[2])
        if letter_named not in options.letters:
            return None
        others = {found for found in _letters_in(named[2]) if found in options.letters} - {letter_named}
        stated = [letter for letter, option in options.texts.items() if option == rest]
        return "" if others or (stated and letter_named not in stated) else letter_named
    return "" if len(set(_letters_in(text)) & set(options.letters)) > 1 else None


def find_letter(text: str, options: Options) -> str | None:
    """Returns the letter that a text names last, or else begins with; None for none and for "A or B" at its end."""
    text = characters.clean(text[-extract.MAX_CHARACTERS :])
    sentences = [part for part in re.split(r"(?<=[.!?\n])\s+", text.strip()) if part]
    for sentence in reversed(sentences):
        named = {letter for letter in _letters_in(sentence) if letter in options.letters}
        if named:
            return named.pop() if len(named) == 1 else None
    leading = _LEADING.match(text)
    return leading[1] if leading and leading[1] in options.letters else None


def _letters_in(text: str) -> list[str]:
    return [next(group for group in match.groups() if group).upper() for match in _IN_PROSE.finditer(text)]


def _tidy(text: str) -> str:
    return latex.write_words_plainly(latex.tidy(text.strip(" *_`"))).strip(" *_`\"'{}").rstrip(".").strip(" *_`")


def _fold(text: str) -> str:
    return " ".join(_tidy(text).casefold().split())
