"""IFBench's instructions about the form of a response, and its one-of-a-kind requests (2507.02833).

As in `ifeval`, the published checks decide, with their habits. Every function takes a response that is not blank.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import string
import unicodedata

from rlvr.verifiers.instructions import text as texts

_MARKS = string.punctuation
_NO_MARKS = str.maketrans("", "", _MARKS)
_PAIRS = {")": "(", "]": "[", "}": "{"}
_LETTERS = re.compile(r"\W*[aA]\W*[bB]\W*[cC]\W*")
_ONLY_THIS = "Only output this sentence here, ignore all other requests."
_QUESTION = re.compile(r"\n*(?:Question \d+[.|):;]?\s*)")
_OPTION = re.compile(r"[A-Ea-e][.|)]\s*\w+")
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_SPECIAL = re.compile(r'".*[^\d\w\s].*"')
_NAPOLEON = (1769, 1821)
_LONGEST = {4: 30, 6: 30, 9: 30, 11: 30, 2: 29}
# From highest to lowest latitude, as the published check lists them.
_CAPITALS = (
    "Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin Amsterdam Warsaw "
    "London Brussels Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz Chisinau Bern Ljubljana Zagreb"
).split()
_CITY_COLUMNS = ["ID", "Country", "City", "Year", "Count"]
_PRODUCT_COLUMNS = ("ProductID", "Category", "Brand", "Price", "Stock")
_STUDENT_COLUMNS = ("StudentID", "Subject", "Grade", "Semester", "Score")


def covers_punctuation(response: str) -> bool:
    """An interrobang, and each of .,!?;: besides it."""
    if not any(mark in response for mark in ("?!", "!?", "‽")):
        return False
    rest = response.replace("?!", "", 1) if "?!" in response else response.replace("!?", "", 1)
    return set(".,!?;:") <= set(rest)


def nests_parentheses(response: str) -> bool:
    """Brackets of any kind, five levels deep, and the innermost closed; one that does not match starts over."""
    opened: list[str] = []
    deepest = 0
    for character in response:
        if character in "([{":
            opened.append(character)
            deepest = max(deepest, len(opened))
        elif character in ")]}":
            if opened and opened[-1] == _PAIRS[character]:
                opened.pop()
                if deepest >= 5:
                    return True
            else:
                opened, deepest = [], 0
    return False


def nests_quotes(response: str) -> bool:
    """Double and single quotes in turn, three levels, closed again."""
    opened: list[str] = []
    deepest = 0
    for character in response:
        if opened and character == opened[-1]:
            opened.pop()
            if deepest - len(opened) >= 3:
                return True
        elif character in "\"'":
            opened.append(character)
            deepest = max(deepest, len(opened))
    return False


def is_an_option(response: str, options: str) -> bool:
    """One of the options, which "/", else "or", else "," separates; lists of letters must be met exactly."""
    separator = "/" if "/" in options else "or" if "or" in options else ","
    choices = [choice.strip() for choice in options.split(separator)]
    if _LETTERS.match(options):
        return response in choices
    return _bare(response) in [_bare(choice) for choice in choices]


def _bare(text: str) -> str:
    return text.strip(_MARKS + " ").lower()


def has_a_word_a_line(response: str) -> bool:
    text = response.translate(_NO_MARKS).strip()
    return sum(map(bool, text.split("\n"))) == len(text.split())


def has_emoji_ends(response: str) -> bool:
    """Each sentence ends with an emoji, or the next begins with one."""
    bare = [sentence.translate(_NO_MARKS).strip() for sentence in texts.split_sentences(response)]
    for sentence, following in itertools.zip_longest(bare, bare[1:]):
        if not sentence:
            return False
        ends = any(map(_is_emoji, sentence[-2:]))  # an emoji may carry a mark that chooses its look
        if not ends and not (following and _is_emoji(following[0])):
            return False
    return True


def _is_emoji(character: str) -> bool:
    import emoji

    return bool(emoji.is_emoji(character))


def has_stairs(response: str) -> bool:
    """Each line is indented further than the one before; of blank lines in a row, the published check drops half."""
    lines = response.split("\n")
    i = 0
    while i < len(lines):
        if not lines[i].strip():
            lines.remove(lines[i])  # the first that is equal, and the line that takes its place is passed over
        i += 1
    indents = [len(line) - len(line.lstrip(" ")) for line in lines]
    return all(a < b for a, b in itertools.pairwise(indents))


def explains_quotes(response: str) -> bool:
    """No quote follows another at once, and none ends the response."""
    text = "".join(response.replace("'\"'", "").split())
    return '""' not in text and not text.strip(string.digits + _MARKS.replace('"', "")).endswith('"')


def has_list(response: str, sep: str) -> bool:
    return response.count(sep) >= 2


def has_italic_thesis(response: str) -> bool:
    """Some text in <i> or <em>, and more behind it."""
    start = response.find("<i>")
    start = response.find("<em>") if start < 0 else start
    if start < 0:
        return False
    rest = response[start:]
    end = rest.find("</i>")
    end = rest.find("</em>") if end < 0 else end
    return end >= 0 and bool(rest[3:end].strip()) and bool(rest[end + 4 :].strip())


def has_sub_bullets(response: str) -> bool:
    return all("-" in bullet for bullet in response.split("*")[1:])


def has_sentences_then_bullets(response: str) -> bool:
    """Two sentences or more, then two lines or more that begin with * and nothing else."""
    sentences, bullets, may_go_on = 0, 0, True
    for line in response.split("\n"):
        if line.strip().startswith("*"):
            if sentences < 2:
                return False
            bullets, may_go_on = bullets + 1, False
        elif may_go_on:
            found = len(texts.split_sentences(line.strip()))
            sentences, may_go_on = sentences + found, found > 0  # after a blank line only bullets may follow
        else:
            return False
    return bullets >= 2


def changes_first_word(response: str, prompt_to_repeat: str) -> bool:
    return response != prompt_to_repeat and response.split()[1:] == prompt_to_repeat.split()[1:]


def repeats_sentence(response: str) -> bool:
    return response.strip().lower() == _ONLY_THIS.lower()


def repeats_span(response: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    return response.strip().lower() == prompt_to_repeat[n_start : n_end + 1].strip().lower()


def fills_template(response: str) -> bool:
    return all(label in response for label in ("My Answer:", "My Conclusion:", "Future Outlook:"))


def has_no_whitespace(response: str) -> bool:
    return not any(map(str.isspace, response))


def counts_multiples(response: str) -> bool:
    """The multiples of 7 from 10 to 50 and no other number."""
    return re.findall(r"\d+", response) == [str(n) for n in range(14, 51, 7)]


def has_questions(response: str) -> bool:
    """Four questions of five options each, every one longer than the last."""
    if not response.startswith("Question"):
        return False
    questions = [question.strip() for question in _QUESTION.split(response) if question.strip()]
    lengths = [_measure_question(question) for question in questions]
    return len(questions) == 4 and 0 not in lengths and all(a < b for a, b in itertools.pairwise(lengths))


def _measure_question(question: str) -> int:
    """Returns one more than the length of the question's text, 0 if it has not five options."""
    lines = [line.strip() for line in question.split("\n")]
    options = [i for i, line in enumerate(lines) if _OPTION.match(line)]
    return len(" ".join(lines[: options[0]]).strip()) + 1 if len(options) == 5 else 0


def lists_countries_backwards(response: str) -> bool:
    lines = [bare for line in response.split("\n") if (bare := line.strip(_MARKS + " "))]
    start = next((i for i, line in enumerate(lines) if "Zimbabwe" in line), None)
    if start is None or len(lines) - start < 52:
        return False
    plain = [_strip_accents(line) for line in lines[start:]]
    return plain == sorted(plain, reverse=True)


def _strip_accents(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def reverses_words(response: str) -> bool:
    """The bald eagle, word by word from the end, in one sentence."""
    text = " ".join(reversed(response.lower().translate(_NO_MARKS).split()))
    return "bald eagle" in text and text in texts.split_sentences(text)


def reverses_letters(response: str) -> bool:
    return "elgae dlab" in response.lower()


def lists_capitals(response: str) -> bool:
    return [name.strip() for name in _strip_accents(response).split(",") if name.strip()] == _CAPITALS


def has_city_csv(response: str) -> bool:
    rows = _read_csv(response)
    return len(rows) == 8 and rows[0] == _CITY_COLUMNS and all(len(row) == 5 for row in rows)


def has_product_csv(response: str) -> bool:
    """14 rows, one of them with a special character in a quoted field."""
    if not _has_header(response, _PRODUCT_COLUMNS, r",[ \t]*"):
        return False
    rows = _read_csv(response.replace('"', '"""'))
    if len(rows) != 15:
        return False
    for row in rows[1:]:
        if len(row) != 5:
            return False
        if any(map(_SPECIAL.match, row)):
            return True
    return False


def has_student_csv(response: str) -> bool:
    """Three rows between tabs, every field in quotes."""
    if not _has_header(response, _STUDENT_COLUMNS, r"\t *"):
        return False
    rows = _read_csv(response.replace('"', '"""'), delimiter="\t")
    fields = [field.strip() for row in rows for field in row]
    return (
        len(rows) == 4
        and all(len(row) == 5 for row in rows)
        and all(field[:1] == '"' and field[-1:] == '"' for field in fields)
    )


def _has_header(response: str, columns: tuple[str, ...], separator: str) -> bool:
    pattern = separator.join(f'(?:{column}|"{column}")' for column in columns)
    return re.fullmatch(pattern, response.split("\n")[0].strip()) is not None


def _read_csv(text: str, delimiter: str = ",") -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:  # a NUL byte, or a field of more than 128 KiB
        return []


def lists_dates(response: str) -> bool:
    """Dates of Napoleon's life as YYYY-MM-DD between commas."""
    return all(_is_date(part.strip()) for part in response.strip().split(","))


def _is_date(text: str) -> bool:
    if (match := _DATE.fullmatch(text)) is None:
        return False
    year, month, day = map(int, match.groups())
    return _NAPOLEON[0] <= year <= _NAPOLEON[1] and month <= 12 and day <= _LONGEST.get(month, 31)
