"""IFEval's and IFBench's instructions: for each type a response that follows and one that does not, and the habits."""

import gzip
import json
import pathlib

import pytest

from rlvr.verifiers import base
from rlvr.verifiers.instructions import text as texts
from rlvr.verifiers.instructions.registry import INSTRUCTIONS
from rlvr.verifiers.instructions.verify import make_variants

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"

AT_LEAST, LESS = "at least", "less than"
STORY = "Tom ran home. Did Ann see him? She did!"
SECOND = ["Uncle", "Bo", "saw", "many", "red", "kites"]
COLUMNS = ("StudentID", "Subject", "Grade", "Semester", "Score")
AFRICA = """
Zimbabwe Zambia Uganda Tunisia Togo Tanzania Sudan Somalia Sierra Seychelles Senegal São Rwanda Nigeria Niger Namibia
Mozambique Morocco Mauritius Mauritania Mali Malawi Madagascar Libya Liberia Lesotho Kenya Ivory Guinea Ghana Gambia
Gabon Ethiopia Eswatini Eritrea Equatorial Egypt Djibouti DRC Congo Comoros Chad Central Cameroon Cabo Burundi Burkina
Botswana Benin Angola Algeria A
""".split()
CAPITALS = (
    "Reykjavik, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, Minsk, Dublin, Berlin, "
    "Amsterdam, Warsaw, London, Brussels, Prague, Luxembourg, Paris, Vienna, Bratislava, Budapest, Vaduz, Chișinău, "
    "Bern, Ljubljana, Zagreb"
)
QUESTIONS = "\n".join(
    f"Question {n}: Who {'really ' * n}painted this?\n" + "\n".join(f"{letter}) Nobody" for letter in "ABCDE")
    for n in range(1, 5)
)

# id, kwargs, a response that follows, one that does not.
CASES = [
    ("keywords:existence", {"keywords": ["mom", "C++"]}, "My Mom likes c++.", "My mother likes C++."),
    ("keywords:frequency", {"keyword": "war", "frequency": 3, "relation": AT_LEAST}, "War, warm, WAR", "War and war"),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, "relation": LESS}, "One war.", "War and war"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "Rocks are hard.", "A ROCK is hard."),
    ("keywords:letter_frequency", {"letter": "T", "let_frequency": 2, "let_relation": AT_LEAST}, "Tt", "t"),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 3, "let_relation": LESS}, "Oh!!", "Oh!!!"),
    (
        "language:response_language",
        {"language": "de"},
        "Das ist ein ganz einfacher Satz.",
        "That is a simple sentence.",
    ),
    ("language:response_language", {"language": "zh"}, "我喜欢学习中文，因为它很有趣。", "これは日本語の文章です。"),
    ("language:response_language", {"language": "kn"}, "1 + 1 = 2", "That is a simple sentence."),
    ("length_constraints:number_sentences", {"num_sentences": 4, "relation": LESS}, STORY, STORY + " Yes."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\none\n***\ntwo\n***", "one\n***\n***\ntwo"),
    ("length_constraints:number_words", {"num_words": 3, "relation": AT_LEAST}, "don't go", "one two"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        'One.\n\n"weekend, they said.',
        "Weekend.\n\nTwo.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [city]", "[name of [city]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\np. s. Hello", "Bye. PS Hello"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S. Hello", "Bye.\nP.S. Hello"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}, "* a\n- b\n  * c\n**d**", "* a\n* b"),
    ("detectable_format:constrained_response", {}, "Well: My answer is no. Sorry.", "My answer is No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 3}, "*a* *d* and **b c**", "*a* *d* and ****"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1 a\nSECTION2 b",
        "Section 1 a\nSection 2 b",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("detectable_format:title", {}, "<<A poem>>\nRoses", "<< >>\nRoses"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one ****** one"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write it. "}, "write IT. Here.", "Here: Write it."),
    ("startend:end_checker", {"end_phrase": "Any other questions?"}, '"Done. any other questions?"', "Any questions?"),
    ("startend:quotation", {}, ' "All of it." ', '"All" of it.'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": AT_LEAST}, "I'M here", "I am"),
    ("change_case:english_capital", {}, "THIS IS A SIMPLE ENGLISH SENTENCE.", "This is a simple English sentence."),
    ("change_case:english_lowercase", {}, "this is a simple english sentence.", "das ist ein ganz einfacher satz."),
    ("punctuation:no_comma", {}, "one; two", "one, two"),
    # IFBench
    ("count:word_count_range", {"min_words": 2.0, "max_words": 3.0}, "one two three", "one two three four"),
    ("count:unique_word_count", {"N": 3.0}, "a b, c", "a A, a. b"),
    ("count:conjunctions", {"small_n": 2}, "this and that, or nothing", "this and that and nothing"),
    ("count:person_names", {"N": 2}, "Emma met Noah's dog.", "Emma met emma, Noahs and Emma."),
    ("count:numbers", {"N": 2}, "1,000 and 2.5", "1 2 3"),
    ("count:pronouns", {"N": 3}, "She/her knows it.", "Tom knows it."),
    ("count:punctuation", {}, "A, b; c: d. e?! f! g?", "A, b; c: d. e?!"),
    ("count:words_japanese", {"N": 2}, "one 二 three です five 6", "one 二 three four"),
    (
        "count:keywords_multiple",
        {"keyword1": "ab", "keyword2": "cd", "keyword3": "ef", "keyword4": "gh", "keyword5": "ij"},
        "Ab" + " cd" * 2 + " EF" * 3 + " gh" * 5 + " ij" * 7,
        "Ab" + " cd" * 2 + " EF" * 3 + " gh" * 5 + " ij" * 8,
    ),
    ("ratio:stop_words", {"percentage": 50}, "the cat", "the cat was here"),
    ("ratio:overlap", {"reference_text": "abcdef", "percentage": 50}, "abcdxy", "abcdef"),
    ("ratio:sentence_type", {}, "Yes. No. Why?", STORY),
    ("ratio:sentence_balance", {}, STORY, "Yes. No. Why?"),
    ("ratio:sentence_words", {}, "We ran. Go now! Why so?", "We ran. Go now! Why not?"),
    ("words:alphabet", {}, "Yes, Zoe, all bears", "yes zoe and cats"),
    ("words:vowel", {}, "a big island", "a big\nisland"),
    ("words:consonants", {}, "Strong words last", "A strong word"),
    ("words:palindrome", {}, "Level, radar " * 5, "level radar " * 4 + "noon level"),
    ("words:prime_lengths", {}, "we saw seven", "we saw four"),
    ("words:repeats", {"small_n": 2}, "no, no, yes", "no, no, No"),
    ("words:odd_even_syllables", {}, "cat happy dog yellow", "cat dog"),
    ("words:last_first", {}, "I like tea. Tea is hot.", "I like tea. It is hot."),
    ("words:paragraph_last_first", {}, "Tea is tea.\n\nI am I", "Tea is tea.\nI am hot."),
    ("words:no_consecutive", {}, "one two one", "one Only two"),
    (
        "words:keywords_specific_position",
        {"keyword": "giggle", "n": 2, "m": 3},
        "Yes. I (giggle) Giggle.",
        "Giggle. I.",
    ),
    ("words:words_position", {"keyword": "vibrant"}, "A vibrant, very vibrant day.", "A vibrant, very vibrant."),
    ("sentence:alliteration_increment", {}, "Tom ran. Big bears sit. Big bad bears bite.", "Big bears sit. Tom ran."),
    ("sentence:increment", {"small_n": 2}, "I am. You are so here.", "I am. You are here."),
    ("sentence:keyword", {"word": "eat", "N": 2.0}, "I sit. I Eat.", "I eat. I am eating."),
    ("format:parentheses", {}, "(a [b {c (d [e] f) g} h] i)", "(a [b {c (d) e} f] g)"),
    ("format:quotes", {}, '"a \'b "c" d\' e"', "\"a 'b' c\""),
    ("format:options", {"options": "yes/no/maybe"}, "*Maybe.*", "maybe not"),
    ("format:options", {"options": "a), b), c), d)"}, "b)", "B)"),
    ("format:newline", {}, "one\n\ntwo.\nthree", "one two\nthree"),
    ("format:emoji", {}, "Yes 😀. No! ❤️", "Yes 😀. No!"),
    ("format:line_indent", {}, "a\n b\n\n   c", "a\n b\n b"),
    ("format:quote_unquote", {}, '"One" is a number. "Two" is too.', 'A number is "one".'),
    ("format:list", {"sep": "!?!?"}, "!?!? a\n!?!? b", "!?!? a\n? b"),
    ("format:thesis", {}, "<em>Tea is good.</em> It is hot.", "<i>Tea is good.</i>"),
    ("format:sub-bullets", {}, "* a\n - b\n* c\n - d", "* a\n - b\n* c"),
    ("format:no_bullets_bullets", {}, "One. Two.\n* a\n* b", "One.\n* a\n* b"),
    ("format:title_case", {}, "The McDonald House", "The house"),
    ("format:output_template", {}, "My Answer: a My Conclusion: b Future Outlook: c", "My Answer: a My Conclusion: b"),
    ("format:no_whitespace", {}, "all-of-it", "all of it"),
    ("repeat:repeat_change", {"prompt_to_repeat": "Write a poem"}, "Sing a poem", "Write a poem"),
    ("repeat:repeat_simple", {}, "Only output this sentence here, ignore all other requests.", "Only output this."),
    ("repeat:repeat_span", {"prompt_to_repeat": "Write a poem", "n_start": 6, "n_end": 8}, "a p", "a po"),
    ("custom:multiples", {}, "14, 21,28 35 42 49", "7 14 21 28 35 42 49"),
    ("custom:mcq_count_length", {}, QUESTIONS, QUESTIONS.replace("E) Nobody", "")),
    ("custom:reverse_newline", {}, "\n".join(f"- {country}" for country in AFRICA), "\n".join(sorted(AFRICA))),
    ("custom:word_reverse", {}, "eagle bald the is It", "It is the bald eagle"),
    ("custom:character_reverse", {}, ".elgae dlab eht s'tI", "It's the bald eagle."),
    (
        "custom:sentence_alphabet",
        {},
        " ".join(f"{chr(65 + i)}nd so on." for i in range(26)),
        " ".join(f"{chr(65 + i)}nd so on." for i in range(25)),
    ),
    ("custom:european_capitals_sort", {}, CAPITALS, CAPITALS.replace("Oslo", "Olso")),
    (
        "custom:csv_city",
        {},
        "ID,Country,City,Year,Count" + '\n1,"A, B",c,2000,3' * 7,
        "ID,Country,City,Year,Count\n1,2,3",
    ),
    (
        "custom:csv_special_character",
        {},
        "ProductID, Category, Brand, Price, Stock" + "\n1,a,b,2,3" * 13 + '\n1,a,"b&c",2,3',
        "ProductID, Category, Brand, Price, Stock" + "\n1,a,b,2,3" * 14,
    ),
    (
        "custom:csv_quotes",
        {},
        "\n".join("\t".join(f'"{name}"' for name in COLUMNS) for _ in range(4)),
        "\n".join("\t".join(COLUMNS) for _ in range(4)),
    ),
    ("custom:date_format_list", {}, "1796-04-12, 1815-06-18", "1796-04-12, 1825-06-18"),
]


def verify(completion, identifiers, kwargs):
    payload = json.loads(json.dumps({"instruction_id_list": identifiers, "kwargs": kwargs}))
    verdict = base.verify("instructions", completion, "", payload)
    assert verdict.seconds < 4
    return verdict


@pytest.mark.parametrize(("identifier", "kwargs", "follows", "breaks"), CASES, ids=[case[0] for case in CASES])
def test_every_instruction_both_ways(identifier, kwargs, follows, breaks):
    assert verify(follows, [identifier], [kwargs]).status == "correct"
    assert verify(breaks, [identifier], [kwargs]).status == "wrong"
    assert verify(" \n", [identifier], [kwargs]).parts["lenient"] == 0  # nothing said, nothing followed


def test_no_instruction_is_left_out():
    assert {case[0] for case in CASES} == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 25 + 57


def test_strict_loose_and_fractions():
    identifiers = ["punctuation:no_comma", "startend:quotation", "detectable_format:title"]
    verdict = verify('Sure, here it is:\n*"<<Tea>> is hot"*', identifiers, [{}, None, {}])
    assert verdict.score == 0 and verdict.status == "wrong"
    assert verdict.parts == {"strict": 0, "lenient": 1, "fraction": pytest.approx(1 / 3), "fraction_lenient": 1}
    assert verdict.detail == "not followed: punctuation:no_comma, startend:quotation"
    # Each instruction may be met by another variant, so all hold loosely though no single text meets all.
    verdict = verify("A, b\nc\nd, e\nF", ["punctuation:no_comma", "change_case:english_lowercase"], [{}, {}])
    assert verdict.parts["fraction_lenient"] == 0
    assert verify("<think>a, b</think>no comma", identifiers[:1], [{}]).score == 1
    assert verify("<think>no comma", identifiers[:1], [{}]).status == "unparsed"


def test_the_eight_variants():
    found = set(make_variants("a*\nb\n*c"))
    assert found == {"a*\nb\n*c", "a\nb\nc", "b\n*c", "b\nc", "a*\nb", "a\nb", "b"}
    assert make_variants("one")[0] == "one" and set(make_variants("one")) == {"one", ""}


def test_texts_are_cut_as_published():
    cut = texts.split_sentences('Dr. J. Smith of the U.S. Senate paid $3.50. "Why?" he asked! Nobody knew. 1. End.')
    expected = ["Dr. J. Smith of the U.S. Senate paid $3.50.", '"Why?"', "he asked!", "Nobody knew.", "1.", "End."]
    assert cut == expected
    assert texts.split_words("She can't (really) go.") == ["She", "ca", "n't", "(", "really", ")", "go", "."]
    assert texts.count_words("don't stop-me_now 3.5") == 6
    assert texts.detect_language("...") is None
    languages = {texts.detect_language("The cat, le chat, die Katze") for _ in range(5)}
    assert len(languages) == 1  # langdetect is random unless seeded


@pytest.mark.parametrize(
    ("identifiers", "kwargs", "said"),
    [
        (["keywords:existense"], [{}], "keywords:existence, keywords:frequency"),
        (["existence"], [{}], "keywords:existence"),
        (["words:start_verb"], [{}], "words:start_verb"),
        (["punctuation:no_comma"], [{"keywords": ["a"]}], "keywords=['a'] cannot be used (accepted: no argument)"),
        (["keywords:existence"], [{"keyword": ["a"]}], "did you mean 'keywords'"),
        (["keywords:existence"], [{}], "kwargs of keywords:existence: keywords is missing"),
        (["keywords:existence"], [{"keywords": None}], "keywords is missing"),
        (["keywords:existence"], [{"keywords": "mom"}], "keywords='mom'"),
        (["keywords:existence"], [{"keywords": []}], "keywords=[]"),
        (["keywords:forbidden_words"], [{"forbidden_words": [""]}], "forbidden_words=['']"),
        (["length_constraints:number_words"], [{"num_words": "3", "relation": AT_LEAST}], "num_words='3'"),
        (["length_constraints:number_words"], [{"num_words": -1, "relation": AT_LEAST}], "num_words=-1"),
        (["length_constraints:number_words"], [{"num_words": 3, "relation": "at most"}], "less than, at least"),
        (["keywords:letter_frequency"], [{"letter": "ab", "let_frequency": 1, "let_relation": LESS}], "letter='ab'"),
        (["language:response_language"], [{"language": "klingon"}], "language='klingon'"),
        (
            ["length_constraints:nth_paragraph_first_word"],
            [{"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"}],
            "nth_paragraph=3",
        ),
        (["count:words_japanese"], [{"N": 0}], "N=0"),
        (["count:words_japanese"], [{"N": 2.5}], "N=2.5"),
        (["punctuation:no_comma"], [], "a list of 1 objects"),
        (["punctuation:no_comma"], {}, "kwargs={}"),
        (["punctuation:no_comma"], [3], "kwargs=3"),
        ([], [], "instruction_id_list=[]"),
        ("punctuation:no_comma", [{}], "instruction_id_list="),
        ([3], [{}], "instruction_id_list=[3]"),
    ],
)
def test_bad_rows(identifiers, kwargs, said):
    verdict = verify("text", identifiers, kwargs)
    assert (verdict.status, verdict.score) == ("error", None)
    assert said in verdict.detail and "accepted: " in verdict.detail, verdict.detail


def test_missing_fields():
    verdict = base.verify("instructions", "text", "", {"instruction_ids": []})
    assert verdict.status == "error" and "did you mean 'instruction_ids'" in verdict.detail
    verdict = base.verify("instructions", "text", "", {"instruction_id_list": ["punctuation:no_comma"]})
    assert verdict.status == "error" and "kwargs is missing" in verdict.detail


@pytest.mark.parametrize(
    "completion",
    ["\x00", "\ud800", "[" * 50_000, '{"a":' * 10_000, "9" * 10_000, "*" * 20_000, "<<" * 20_000, "a\u0301" * 1000,
     "\x1b[31m" * 1000, "(" * 20_000, "\n" * 3_000, "." * 10_000, "x" * 10_000_000],
    ids=range(13),
)  # fmt: skip
def test_any_text_gets_a_verdict(completion):
    identifiers, kwargs = zip(*((identifier, kwargs) for identifier, kwargs, *_ in CASES), strict=True)
    verdict = verify(completion, list(identifiers), list(kwargs))
    assert verdict.score == 0 and verdict.status in ("wrong", "unparsed")


@pytest.mark.parametrize("name", ["ifeval/ifeval", "ifbench/ifbench_test"])
def test_shared_rows_are_all_known(name):
    path = SHARED / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        verdict = base.verify("instructions", "Yes, I can.", "", row)
        assert verdict.score is not None, verdict.detail
        assert base.verify("instructions", row["prompt"], "", row).parts.keys() > {"fraction"}
