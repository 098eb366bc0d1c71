"""Strict and lenient extraction, and the reading of numbers."""

import fractions
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr import errors, types
from rlvr.verifiers import extract, numerals
from rlvr.verifiers.judge import judge

# (format, completion, strict, lenient for a numeric reference)
CASES = [
    ("bare", " 42\n", "42", "42"),
    ("bare", "6 * 7 = 42", "6 * 7 = 42", "42"),
    ("bare", "The answer is 42.", "The answer is 42.", "42"),
    ("bare", "**Answer:** 1,250 apples\nOr so. 3!", "**Answer:** 1,250 apples\nOr so. 3!", "1,250"),
    ("bare", "  \n", None, None),
    ("bare", "<think>5 + 5 = 10</think>\n10", "10", "10"),
    ("bare", "first 3</think> no, 4</think>  5", "5", "5"),
    ("bare", "<think>it could be 7, or", None, "7"),
    ("boxed", r"so \boxed{1} or rather \boxed{42}.", "42", "42"),
    ("boxed", r"\boxed{\frac{3}{4}} as required", r"\frac{3}{4}", r"\frac{3}{4}"),
    ("boxed", r"\boxed{42} and then \boxed{43", None, "42"),
    ("boxed", r"Thus $x = \boxed{-7}$", "-7", "-7"),
    ("boxed", r"\boxed{18 \text{ dollars}}", r"18 \text{ dollars}", "18"),
    ("boxed", r"\boxed{}", None, r"\boxed{}"),  # no number anywhere: the last line
    ("boxed", "The final answer is $42$", None, "42"),
    ("boxed", "10 - 3 = 7, so 7 - 3 leaves 4", None, "4"),
    ("boxed", "It costs $1,234.50.", None, "$1,234.50"),
    ("tag", "work <answer> 42 </answer> done", "42", "42"),
    ("tag", "<answer>41</answer> wait <answer>42</answer>", None, "42"),
    ("tag", "<answer>42", None, "42"),
    ("tag", "</answer>42<answer>", None, "42"),
    ("tag", "<ANSWER>42</ANSWER>", None, "42"),
    ("hash", "16 - 3 - 4 = 9\n9 * 2 = 18\n#### 18", "18", "18"),
    ("hash", "#### 17\n#### 18\n", "18", "18"),
    ("hash", "#### 18\nIs there anything else? 99", None, "18"),
    ("hash", "we get -18", None, "-18"),
]


def show(case):
    return f"{case[0]}:{case[1][:24]!r}"


@pytest.mark.parametrize("case", CASES, ids=show)
def test_extraction(case):
    answer_format, text, strict, lenient = case
    assert extract.extract_strict(text, answer_format) == strict
    assert extract.extract_lenient(text, answer_format, numeric=True) == lenient


def test_lenient_of_texts():
    assert extract.extract_lenient("I think\nthe answer is **Paris**.", "tag") == "Paris"
    assert extract.extract_lenient("Let me see.\n\n`knight`\n", "tag") == "knight"
    assert extract.extract_lenient("It is \\boxed{B}; the answer is A.", "tag") == "B"
    assert extract.extract_lenient("<answer>A</answer> \\boxed{B}", "tag") == "A", "the format's own place first"


def test_unknown_format():
    with pytest.raises(errors.ConfigError, match="did you mean 'boxed'"):
        extract.extract_strict("1", "boxd")


def test_many_unclosed_boxes_are_fast():
    text = "\\boxed{" * 20_000
    start = time.perf_counter()
    assert extract.extract_strict(text, "boxed") is None
    assert extract.extract_lenient(text, "boxed", numeric=True) == text
    assert time.perf_counter() - start < 1


PIECES = "\\boxed{ } { \\ $ <answer> </answer> #### <think> </think> Answer: 42 -7 1,234 3/4 . ** x".split()
FRAGMENTS = st.lists(
    st.one_of(st.sampled_from([*PIECES, "\n", " ", "answer is "]), st.text(max_size=3)), max_size=14
).map("".join)


@settings(max_examples=400, deadline=None)
@given(FRAGMENTS, st.sampled_from(sorted(extract.ANSWER_FORMATS)), st.sampled_from(["42", "x", "-7", "", "3/4"]))
def test_lenient_is_at_least_as_generous_as_strict(text, answer_format, reference):
    for numeric in (False, True):
        if extract.extract_strict(text, answer_format) is not None:
            assert extract.extract_lenient(text, answer_format, numeric=numeric) is not None
    payload = {"answer_format": answer_format}
    verdict = judge(text, reference, payload, lambda answer: float(answer == reference))
    assert verdict.parts["lenient"] >= verdict.parts["strict"] == verdict.score
    assert verdict.status in types.STATUSES


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        (" -1,234.50 ", fractions.Fraction(-2469, 2)),
        ("+.5", fractions.Fraction(1, 2)),
        ("$18", 18),
        ("-$18.00", -18),
        ("\\$-18", -18),
        ("$18$", 18),
        ("\u22127", -7),
        ("50%", 50),
        ("50\\%", 50),
        ("3 / 4", fractions.Fraction(3, 4)),
        ("-\\frac{3}{4}", fractions.Fraction(-3, 4)),
        ("1{,}000", 1000),
        ("18.", 18),
        ("2e3", 2000),
        ("0.1", fractions.Fraction(1, 10)),
        ("1,23", None),
        ("1.234,5", None),
        ("--5", None),
        ("-$-5", None),
        ("3/0", None),
        ("1e99999", None),
        ("18 dollars", None),
        ("1 2", None),
        ("nan", None),
        ("inf", None),
        ("\u0664\u0662", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_parse_number(text, value):
    assert numerals.parse_number(text) == value


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_written_numbers_are_read_back(digits, places):
    value = fractions.Fraction(digits, 10**places)
    sign, plain = ("-" if value < 0 else ""), f"{abs(digits) // 10**places:,}"
    decimals = f".{abs(digits) % 10**places:0{places}d}" if places else ""
    written = f"{sign}{plain}{decimals}"
    assert numerals.parse_number(written) == value
    found = numerals.find_last_number(f"There were 12 of 5 kinds, so it is {written}, I believe.")
    assert numerals.parse_number(found) == value
