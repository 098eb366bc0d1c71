"""Every instruction by its published id: the check, and how each of its arguments is read.

`words:start_verb` of IFBench is left out: its published check asks a trained tagger which word is a verb.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from rlvr import errors
from rlvr.verifiers import payloads
from rlvr.verifiers.instructions import forms, ifeval, words

Reader = Callable[[Mapping[str, Any], str], Any]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One type of instruction.

    Attributes:
        check: (response, **arguments) -> whether the response follows it.
        arguments: how each is read from the row's kwargs; all must be there.
    """

    check: Callable[..., bool]
    arguments: Mapping[str, Reader]


def _read_relation(kwargs: Mapping[str, Any], field: str) -> str:
    value = payloads.read_text(kwargs, field)
    if value not in ifeval.RELATIONS:
        raise payloads.make_error(field, value, ", ".join(ifeval.RELATIONS), errors.nearest(value, ifeval.RELATIONS))
    return value


def _read_language(kwargs: Mapping[str, Any], field: str) -> str:
    value = payloads.read_text(kwargs, field)
    if value not in ifeval.LANGUAGES:
        raise payloads.make_error(field, value, f"a code among {', '.join(ifeval.LANGUAGES)}")
    return value


def _read_letter(kwargs: Mapping[str, Any], field: str) -> str:
    value = payloads.read_text(kwargs, field)
    if len(value) != 1:
        raise payloads.make_error(field, value, "one letter or mark")
    return value


def _read_filled(kwargs: Mapping[str, Any], field: str) -> str:
    value = payloads.read_text(kwargs, field)
    if not value.strip():
        raise payloads.make_error(field, value, "a text that is not blank")
    return value


def _read_filled_list(kwargs: Mapping[str, Any], field: str) -> list[str]:
    values = payloads.read_texts(kwargs, field)
    if not all(value.strip() for value in values):
        raise payloads.make_error(field, values, "texts that are not blank")
    return values


_count: Reader = payloads.read_count
_ordinal: Reader = functools.partial(payloads.read_count, least=1)
_number: Reader = payloads.read_number
_N = {"N": _count}
_SMALL_N = {"small_n": _count}


def _make(check: Callable[..., bool], **arguments: Reader) -> Instruction:
    return Instruction(check, arguments)


INSTRUCTIONS: dict[str, Instruction] = {
    # IFEval
    "keywords:existence": _make(ifeval.has_keywords, keywords=_read_filled_list),
    "keywords:frequency": _make(
        ifeval.has_keyword_frequency, keyword=_read_filled, frequency=_count, relation=_read_relation
    ),
    "keywords:forbidden_words": _make(ifeval.lacks_forbidden_words, forbidden_words=_read_filled_list),
    "keywords:letter_frequency": _make(
        ifeval.has_letter_frequency, letter=_read_letter, let_frequency=_count, let_relation=_read_relation
    ),
    "language:response_language": _make(ifeval.is_in_language, language=_read_language),
    "length_constraints:number_sentences": _make(
        ifeval.has_number_of_sentences, num_sentences=_count, relation=_read_relation
    ),
    "length_constraints:number_paragraphs": _make(ifeval.has_number_of_paragraphs, num_paragraphs=_count),
    "length_constraints:number_words": _make(ifeval.has_number_of_words, num_words=_count, relation=_read_relation),
    "length_constraints:nth_paragraph_first_word": _make(
        ifeval.has_first_word_of_paragraph, num_paragraphs=_ordinal, nth_paragraph=_ordinal, first_word=_read_filled
    ),
    "detectable_content:number_placeholders": _make(ifeval.has_placeholders, num_placeholders=_count),
    "detectable_content:postscript": _make(ifeval.has_postscript, postscript_marker=_read_filled),
    "detectable_format:number_bullet_lists": _make(ifeval.has_number_of_bullets, num_bullets=_count),
    "detectable_format:constrained_response": _make(ifeval.is_constrained),
    "detectable_format:number_highlighted_sections": _make(ifeval.has_highlights, num_highlights=_count),
    "detectable_format:multiple_sections": _make(
        ifeval.has_sections, section_spliter=_read_filled, num_sections=_count
    ),
    "detectable_format:json_format": _make(ifeval.is_json),
    "detectable_format:title": _make(ifeval.has_title),
    "combination:two_responses": _make(ifeval.has_two_responses),
    "combination:repeat_prompt": _make(ifeval.repeats_prompt, prompt_to_repeat=_read_filled),
    "startend:end_checker": _make(ifeval.has_end, end_phrase=_read_filled),
    "startend:quotation": _make(ifeval.is_quoted),
    "change_case:capital_word_frequency": _make(
        ifeval.has_capital_words, capital_frequency=_count, capital_relation=_read_relation
    ),
    "change_case:english_capital": _make(ifeval.is_english_capital),
    "change_case:english_lowercase": _make(ifeval.is_english_lowercase),
    "punctuation:no_comma": _make(ifeval.lacks_commas),
    # IFBench
    "count:word_count_range": _make(words.has_word_count, min_words=_count, max_words=_count),
    "count:unique_word_count": _make(words.has_unique_words, **_N),
    "count:conjunctions": _make(words.has_conjunctions, **_SMALL_N),
    "count:person_names": _make(words.has_person_names, **_N),
    "count:numbers": _make(words.has_numbers, **_N),
    "count:pronouns": _make(words.has_pronouns, **_N),
    "count:punctuation": _make(forms.covers_punctuation),
    "count:words_japanese": _make(words.has_japanese_words, N=_ordinal),
    "count:keywords_multiple": _make(
        words.has_keywords_by_number, **{f"keyword{i}": _read_filled for i in range(1, 6)}
    ),
    "ratio:stop_words": _make(words.has_few_stop_words, percentage=_number),
    "ratio:overlap": _make(words.has_overlap, reference_text=payloads.read_text, percentage=_number),
    "ratio:sentence_type": _make(words.has_sentence_types),
    "ratio:sentence_balance": _make(words.has_balanced_sentences),
    "ratio:sentence_words": _make(words.has_equal_sentences),
    "words:alphabet": _make(words.loops_alphabet),
    "words:vowel": _make(words.has_few_vowels),
    "words:consonants": _make(words.has_consonant_clusters),
    "words:palindrome": _make(words.has_palindromes),
    "words:prime_lengths": _make(words.has_prime_lengths),
    "words:repeats": _make(words.has_few_repeats, **_SMALL_N),
    "words:odd_even_syllables": _make(words.alternates_syllables),
    "words:last_first": _make(words.chains_sentences),
    "words:paragraph_last_first": _make(words.closes_paragraphs),
    "words:no_consecutive": _make(words.has_no_consecutive_letters),
    "words:keywords_specific_position": _make(words.has_keyword_at, keyword=_read_filled, n=_ordinal, m=_ordinal),
    "words:words_position": _make(words.has_keyword_at_both_ends, keyword=_read_filled),
    "sentence:alliteration_increment": _make(words.has_incrementing_alliteration),
    "sentence:increment": _make(words.has_incrementing_sentences, **_SMALL_N),
    "sentence:keyword": _make(words.has_keyword_in_sentence, word=_read_filled, N=_ordinal),
    "format:parentheses": _make(forms.nests_parentheses),
    "format:quotes": _make(forms.nests_quotes),
    "format:options": _make(forms.is_an_option, options=_read_filled),
    "format:newline": _make(forms.has_a_word_a_line),
    "format:emoji": _make(forms.has_emoji_ends),
    "format:line_indent": _make(forms.has_stairs),
    "format:quote_unquote": _make(forms.explains_quotes),
    "format:list": _make(forms.has_list, sep=_read_filled),
    "format:thesis": _make(forms.has_italic_thesis),
    "format:sub-bullets": _make(forms.has_sub_bullets),
    "format:no_bullets_bullets": _make(forms.has_sentences_then_bullets),
    "format:title_case": _make(words.is_title_case),
    "format:output_template": _make(forms.fills_template),
    "format:no_whitespace": _make(forms.has_no_whitespace),
    "repeat:repeat_change": _make(forms.changes_first_word, prompt_to_repeat=_read_filled),
    "repeat:repeat_simple": _make(forms.repeats_sentence),
    "repeat:repeat_span": _make(forms.repeats_span, prompt_to_repeat=_read_filled, n_start=_count, n_end=_count),
    "custom:multiples": _make(forms.counts_multiples),
    "custom:mcq_count_length": _make(forms.has_questions),
    "custom:reverse_newline": _make(forms.lists_countries_backwards),
    "custom:word_reverse": _make(forms.reverses_words),
    "custom:character_reverse": _make(forms.reverses_letters),
    "custom:sentence_alphabet": _make(words.has_alphabet_sentences),
    "custom:european_capitals_sort": _make(forms.lists_capitals),
    "custom:csv_city": _make(forms.has_city_csv),
    "custom:csv_special_character": _make(forms.has_product_csv),
    "custom:csv_quotes": _make(forms.has_student_csv),
    "custom:date_format_list": _make(forms.lists_dates),
}


def bind_instruction(identifier: Any, kwargs: Any) -> Callable[[str], bool]:
    """Returns the check of one instruction, its arguments filled in.

    Arguments that are null count as absent: tables of instructions have a column for every argument of any.

    Raises:
        DataError: an id that is not known, or kwargs that lack an argument, have another, or hold a wrong value.
    """
    if not isinstance(identifier, str) or identifier not in INSTRUCTIONS:
        raise payloads.make_error("instruction_id_list", identifier, _list_near(identifier))
    if kwargs is not None and not isinstance(kwargs, dict):
        raise payloads.make_error("kwargs", kwargs, "a list of objects, one for each instruction")
    given = {field: value for field, value in (kwargs or {}).items() if value is not None}
    instruction = INSTRUCTIONS[identifier]
    try:
        for field in given:
            if field not in instruction.arguments:
                hint = errors.nearest(str(field), instruction.arguments)
                raise payloads.make_error(field, given[field], ", ".join(instruction.arguments) or "no argument", hint)
        arguments = {field: read(given, field) for field, read in instruction.arguments.items()}
        if identifier == "length_constraints:nth_paragraph_first_word":
            if arguments["nth_paragraph"] > arguments["num_paragraphs"]:
                raise payloads.make_error("nth_paragraph", arguments["nth_paragraph"], "at most num_paragraphs")
    except errors.DataError as error:
        raise errors.DataError(f"kwargs of {identifier}: {error}") from error
    return functools.partial(instruction.check, **arguments)


def _list_near(identifier: Any) -> str:
    """Names the ids of the same group, or those that end alike, or says how many there are."""
    group, _, name = str(identifier).rpartition(":")
    near = [each for each in INSTRUCTIONS if each.startswith(f"{group}:") or each.endswith(f":{name}")]
    hint = errors.nearest(str(identifier), INSTRUCTIONS).removeprefix("; did you mean ").strip("?'")
    near = list(dict.fromkeys([hint, *near] if hint else near))
    return ", ".join(near) if near else f"one of {len(INSTRUCTIONS)} ids such as {', '.join(list(INSTRUCTIONS)[:4])}"
