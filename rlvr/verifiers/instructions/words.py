"""IFBench's instructions about words and sentences (Pyatkin et al., 2507.02833): whether a response follows each.

As in `ifeval`, the published checks decide, with their habits. Every function takes a response that is not blank.
"""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter

from rlvr.verifiers.instructions import text as texts

_MARKS = string.punctuation
_NO_MARKS = str.maketrans("", "", _MARKS)
_CONJUNCTIONS = {"and", "but", "for", "nor", "or", "so", "yet"}
_NAMES = """
Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin Harper Leo
Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria Elijah Layla
Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan
""".split()
_PRONOUNS = set(
    """
    i me we us you he him she her it they them my mine our ours your yours his hers its their theirs myself ourselves
    yourself yourselves himself herself itself themselves this that these those who whom whose which what whoever
    whomever whatever whichever anybody anyone anything everybody everyone everything nobody nothing somebody someone
    something each either neither both all some any none
    """.split()
)
_CLUSTER = re.compile(r"[b-df-hj-np-tv-z]{2}")
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_PRIMES = {n for n in range(2, 98) if all(n % d for d in range(2, n))}
_TIMES = (1, 2, 3, 5, 7)


def has_word_count(response: str, min_words: int, max_words: int) -> bool:
    return min_words <= texts.count_words(response) <= max_words


def has_unique_words(response: str, N: int) -> bool:
    return len({word.strip(_MARKS) for word in response.lower().split()}) >= N


def has_few_stop_words(response: str, percentage: float) -> bool:
    words = texts.find_words(response)
    stops = sum(word.lower() in texts.STOP_WORDS for word in words)
    return bool(words) and stops / len(words) * 100 <= percentage


def has_conjunctions(response: str, small_n: int) -> bool:
    """Different ones, as they are written: `and` and `And,` are two."""
    found = {word for word in response.split() if word.strip(_MARKS).lower() in _CONJUNCTIONS}
    return len(found) >= small_n


def has_person_names(response: str, N: int) -> bool:
    return sum(re.search(rf"\b{name}\b", response) is not None for name in _NAMES) >= N


def has_overlap(response: str, reference_text: str, percentage: float) -> bool:
    """The share of the response's runs of three characters that the reference has too, within two points."""
    own, reference = _find_trigrams(response), _find_trigrams(reference_text)
    return bool(own) and percentage - 2 <= len(own & reference) / len(own) * 100 <= percentage + 2


def _find_trigrams(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(len(text) - 2)}


def has_numbers(response: str, N: int) -> bool:
    return len(re.findall(r"\d+", response.translate(_NO_MARKS))) == N


def loops_alphabet(response: str) -> bool:
    words = response.translate(_NO_MARKS).lower().split()
    if not words or words[0][0] not in string.ascii_lowercase:
        return False
    start = ord(words[0][0]) - ord("a")
    return all(word[0] == string.ascii_lowercase[(start + i) % 26] for i, word in enumerate(words))


def has_few_vowels(response: str) -> bool:
    text = response.strip()
    return "\n" not in text and len(set(text.lower()) & set("aeiou")) <= 3


def has_consonant_clusters(response: str) -> bool:
    return all(_CLUSTER.search(word) for word in response.lower().split())


def has_palindromes(response: str) -> bool:
    words = response.translate(_NO_MARKS).lower().split()
    return sum(len(word) >= 5 and word == word[::-1] for word in words) >= 10


def has_prime_lengths(response: str) -> bool:
    return all(len(word) in _PRIMES for word in response.translate(_NO_MARKS).split())


def has_japanese_words(response: str, N: int) -> bool:
    words = [word.strip(_MARKS) for word in response.split()[N - 1 :: N]]
    return all(_JAPANESE.search(word) for word in words if word and not word.isdigit())


def has_few_repeats(response: str, small_n: int) -> bool:
    return max(Counter(response.lower().translate(_NO_MARKS).split()).values(), default=0) <= small_n


def has_pronouns(response: str, N: int) -> bool:
    return sum(word in _PRONOUNS for word in texts.split_words(response.replace("/", " ").lower())) >= N


def alternates_syllables(response: str) -> bool:
    import syllapy

    words = response.translate(_NO_MARKS).lower().split()
    return all(a != b for a, b in itertools.pairwise(syllapy.count(word) % 2 for word in words))


def has_no_consecutive_letters(response: str) -> bool:
    words = response.lower().translate(_NO_MARKS).split()
    return all(a[0] != b[0] for a, b in itertools.pairwise(words))


def has_keywords_by_number(
    response: str, keyword1: str, keyword2: str, keyword3: str, keyword4: str, keyword5: str
) -> bool:
    """The keywords stand 1, 2, 3, 5 and 7 times, also inside other words."""
    text = response.lower()
    keywords = (keyword1, keyword2, keyword3, keyword4, keyword5)
    return all(text.count(word.strip().lower()) == times for word, times in zip(keywords, _TIMES, strict=True))


def has_keyword_at(response: str, keyword: str, n: int, m: int) -> bool:
    """The m-th word of the n-th sentence; punctuation is no word."""
    sentences = texts.split_sentences(response)
    if len(sentences) < n:
        return False
    words = [word for word in texts.split_words(sentences[n - 1]) if any(map(str.isalnum, word))]
    return len(words) >= m and words[m - 1].lower() == keyword.strip().lower()


def has_keyword_at_both_ends(response: str, keyword: str) -> bool:
    """The second word and the second to last, a last punctuation mark apart."""
    words = texts.split_words(response)
    if len(words) < 2:
        return False
    back = 3 if words[-1] in _MARKS else 2
    return len(words) >= back and words[1].lower() == words[-back].lower() == keyword.strip().lower()


def has_keyword_in_sentence(response: str, word: str, N: int) -> bool:
    sentences = texts.split_sentences(response)
    pattern = rf"\b{re.escape(word)}\b"
    return len(sentences) >= N and re.search(pattern, sentences[N - 1], re.IGNORECASE) is not None


def has_sentence_types(response: str) -> bool:
    """Two that end with a full stop for each that ends with a question mark."""
    stated, asked, _ = _count_types(response)
    return stated == 2 * asked


def has_balanced_sentences(response: str) -> bool:
    return len(set(_count_types(response))) == 1


def _count_types(response: str) -> tuple[int, int, int]:
    ends = Counter(sentence[-1:] for sentence in texts.split_sentences(response))
    return ends["."], ends["?"], ends["!"]


def has_incrementing_alliteration(response: str) -> bool:
    """Each sentence has more words in alliteration than the one before."""
    counts = [_count_alliteration(sentence) for sentence in texts.split_sentences(response)]
    return all(a < b for a, b in itertools.pairwise(counts))


def _count_alliteration(sentence: str) -> int:
    words = [word for each in sentence.lower().split() if (word := each.lstrip(_MARKS))]
    same = [a[0] == b[0] for a, b in itertools.pairwise(words)]
    return sum(1 if before else 2 for before, now in zip([False, *same], same, strict=False) if now)


def has_equal_sentences(response: str) -> bool:
    """Three sentences of equal length (the published check does not look at the words)."""
    sentences = texts.split_sentences(response)
    return len(sentences) == 3 and len({len(sentence) for sentence in sentences}) == 1


def chains_sentences(response: str) -> bool:
    """The last word of a sentence is the first of the next."""
    for sentence, following in itertools.pairwise(texts.split_sentences(response)):
        last, first = sentence.rstrip(_MARKS + " ").split(), following.lstrip(_MARKS + " ").split()
        if not last or not first or last[-1].lower() != first[0].lower():
            return False
    return True


def has_incrementing_sentences(response: str, small_n: int) -> bool:
    """Each sentence has `small_n` words more than the one before."""
    counts = [len(each.translate(_NO_MARKS).split()) for each in texts.split_sentences(response)]
    return all(b == a + small_n for a, b in itertools.pairwise(counts))


def closes_paragraphs(response: str) -> bool:
    """Each line ends with the word it started with."""
    lines = [line.strip().lower().strip(_MARKS + " ").split() for line in response.split("\n")]
    return all(words[0] == words[-1] for words in lines if words)


def has_alphabet_sentences(response: str) -> bool:
    """26 sentences, whose first letters are the alphabet."""
    sentences = texts.split_sentences(response)
    return [sentence[:1].lower() for sentence in sentences] == list(string.ascii_lowercase)


def is_title_case(response: str) -> bool:
    """No word begins small, unless its capitals are mixed."""
    words = [word for word in texts.split_words(response) if word[0].isalpha()]
    return not any(word[0].islower() and (len(word) == 1 or word[1:].islower() or word[1:].isupper()) for word in words)
