"""The 25 instructions of IFEval (Zhou et al., 2311.07911): whether a response follows each.

The published checks, not the instructions' wording, are what scores are compared by, so their habits are kept: a
keyword is a regular expression, `- ` and `* ` both make bullets, two asterisks highlight as one does. Where a text has
no letters to tell a language by, it counts as being in it. Every function takes a response that is not blank.
"""

from __future__ import annotations

import json
import re
from collections import Counter

from rlvr.verifiers.instructions import text as texts

RELATIONS = ("less than", "at least")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
LANGUAGES = (
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no pa pl pt ro "
    "ru sk sl so sq sv sw ta te th tl tr uk ur vi zh zh-cn zh-tw"
).split()

_STAR_BULLET = re.compile(r"^\s*\*[^*].*$", re.MULTILINE)
_DASH_BULLET = re.compile(r"^\s*-.*$", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*[^\n*]*\*")
_DOUBLE_HIGHLIGHT = re.compile(r"\*\*[^\n*]*\*\*")
_PARAGRAPH_BREAK = re.compile(r"\s?\*\*\*\s?")
_WORD_END = re.compile(r"""[.,?!'"]""")
_POSTSCRIPTS = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}


def compare(number: int, relation: str, threshold: int) -> bool:
    """Whether `number` is "less than" or "at least" the threshold."""
    return number < threshold if relation == "less than" else number >= threshold


def make_pattern(text: str) -> str:
    """Returns the text as a pattern, as the published checks read it; escaped if it is none, such as "C++"."""
    try:
        re.compile(text)
    except re.error:
        return re.escape(text)
    return text


def has_keywords(response: str, keywords: list[str]) -> bool:
    return all(re.search(make_pattern(keyword), response, re.IGNORECASE) for keyword in keywords)


def has_keyword_frequency(response: str, keyword: str, frequency: int, relation: str) -> bool:
    found = re.findall(make_pattern(keyword.strip()), response, re.IGNORECASE)
    return compare(len(found), relation, frequency)


def lacks_forbidden_words(response: str, forbidden_words: list[str]) -> bool:
    patterns = [rf"\b{make_pattern(word)}\b" for word in forbidden_words]
    return not any(re.search(pattern, response, re.IGNORECASE) for pattern in patterns)


def has_letter_frequency(response: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return compare(Counter(response.lower())[letter.lower()], let_relation, let_frequency)


def is_in_language(response: str, language: str) -> bool:
    found = texts.detect_language(response)
    return found is None or found == language or (language == "zh" and found.startswith("zh"))


def has_number_of_sentences(response: str, num_sentences: int, relation: str) -> bool:
    return compare(len(texts.split_sentences(response)), relation, num_sentences)


def has_number_of_words(response: str, num_words: int, relation: str) -> bool:
    return compare(texts.count_words(response), relation, num_words)


def has_number_of_paragraphs(response: str, num_paragraphs: int) -> bool:
    """Paragraphs stand between `***`; one at either end may be blank."""
    paragraphs = [paragraph.strip() for paragraph in _PARAGRAPH_BREAK.split(response)]
    if not all(paragraphs[1:-1]):
        return False
    return sum(map(bool, paragraphs)) == num_paragraphs


def has_first_word_of_paragraph(response: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs stand between blank lines."""
    paragraphs = [paragraph.strip() for paragraph in response.split("\n\n")]
    if nth_paragraph > sum(map(bool, paragraphs)) or not paragraphs[nth_paragraph - 1]:
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    found = _WORD_END.split(word, maxsplit=1)[0].lower()
    return sum(map(bool, paragraphs)) == num_paragraphs and found == first_word.lower()


def has_placeholders(response: str, num_placeholders: int) -> bool:
    return sum(map(_count_placeholders, response.split("\n"))) >= num_placeholders


def _count_placeholders(line: str) -> int:
    """The matches of `\\[.*?\\]`, without its squared time on a line of opening brackets."""
    count, position = 0, 0
    while (start := line.find("[", position)) >= 0 and (end := line.find("]", start)) >= 0:
        count, position = count + 1, end + 1
    return count


def has_postscript(response: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    pattern = _POSTSCRIPTS.get(marker) or rf"\s*{make_pattern(marker.lower())}.*$"
    return re.search(pattern, response.lower(), re.MULTILINE) is not None


def has_number_of_bullets(response: str, num_bullets: int) -> bool:
    return len(_STAR_BULLET.findall(response)) + len(_DASH_BULLET.findall(response)) == num_bullets


def is_constrained(response: str) -> bool:
    return any(option in response for option in OPTIONS)


def has_highlights(response: str, num_highlights: int) -> bool:
    single = [found for found in _HIGHLIGHT.findall(response) if found.strip("*").strip()]
    double = [found for found in _DOUBLE_HIGHLIGHT.findall(response) if found[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def has_sections(response: str, section_spliter: str, num_sections: int) -> bool:
    pattern = rf"\s?{make_pattern(section_spliter.strip())}\s?\d+\s?"
    return sum(1 for _ in re.finditer(pattern, response)) >= num_sections


def is_json(response: str) -> bool:
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def has_title(response: str) -> bool:
    """Some line has `<<`, text and `>>`: from its first opening to its last closing."""
    for line in response.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def has_two_responses(response: str) -> bool:
    """Two different ones stand between `******`; what is before the first and behind the last may be blank."""
    parts = [part.strip() for part in response.split("******")]
    if not all(parts[1:-1]):
        return False
    filled = [part for part in parts if part]
    return len(filled) == 2 and filled[0] != filled[1]


def repeats_prompt(response: str, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def has_end(response: str, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def has_capital_words(response: str, capital_frequency: int, capital_relation: str) -> bool:
    capitals = sum(word.isupper() for word in texts.split_words(response))
    return compare(capitals, capital_relation, capital_frequency)


def is_english_capital(response: str) -> bool:
    return response.isupper() and is_in_language(response, "en")


def is_english_lowercase(response: str) -> bool:
    return response.islower() and is_in_language(response, "en")


def lacks_commas(response: str) -> bool:
    return "," not in response


def is_quoted(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'
