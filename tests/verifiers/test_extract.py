"""Strict and lenient extraction."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr import errors, types
from rlvr.verifiers import extract
from rlvr.verifiers.judge import judge

# (format, completion, strict, lenient for a numeric reference)
CASES = [
    ("bare", " 42\n", "42", "42"),
    ("bare", "6 * 7 = 42", "6 * 7 = 42", "42"),
    ("bare", "The answer is 42.", "The answer is 42.", "42"),
    ("bare", "**Answer:** 1,250 apples\nOr so. 3!", "**Answer:** 1,250 apples\nOr so. 3!", "1,250 apples"),
    ("bare", "  \n", None, None),
    ("bare", "<think>5 + 5 = 10</think>\n10", "10", "10"),
    ("bare", "first 3</think> no, 4</think>  5", "5", "5"),
    ("bare", "<think>it could be 7, or", None, "7"),
    ("boxed", r"so \boxed{1} or rather \boxed{42}.", "42", "42"),
    ("boxed", r"\boxed{\frac{3}{4}} as required", r"\frac{3}{4}", r"\frac{3}{4}"),
    ("boxed", r"\boxed{42} and then \boxed{43", None, "42"),
    ("boxed", r"Thus $x = \boxed{-7}$", "-7", "-7"),
    ("boxed", r"\boxed{18 \text{ dollars}}", r"18 \text{ dollars}", r"18 \text{ dollars}"),
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


# (completion, readings where no format was asked for)
UNTOLD = [
    (r"<answer>1</answer> \boxed{42}", ("42",)),
    ("<answer>42</answer> #### 1", ("42",)),
    ("#### Steps\nThe answer is 42.", ("42",)),  # a heading
    ("2 * 21 = 42\n#### 42", ("42",)),
    ("**Final Answer**: $42$", ("42",)),
    ("The answer is\n\n42", ("42",)),
    ("The answer is 42 because 6 * 7 is.", ("42",)),
    ("Answer: the largest $n$ is 34.", ("the largest $n$ is 34", "34")),
    ("x = 42", ("x = 42",)),
    ("2x", ("2x",)),
    ("1, 2, 42", ("1, 2, 42",)),
    ("We start with 3. She makes $18 a day.", ("$18",)),
    ("Therefore $x \\geq 5$ is the solution.", ("x \\geq 5",)),
    ("Thus\n\\[ x = 5 \\]\n", (" x = 5 ".strip(),)),
    ("It is 41 or 42.", ("It is 41 or 42.",)),
    ("It is 41 or $42$.", ("It is 41 or $42$.",)),
    ("<think>It is 42.", ()),
    (r"\boxed{42", ()),
    (r"\boxed{\boxed{42}}", (r"\boxed{42}",)),
    (r"\boxed 5", ("5",)),
    (r"\\boxed{5}", ("5",)),  # escaped once too often
    # several boxes
    (r"\boxed{1} or \boxed{2}", ("1, 2",)),
    (r"\boxed{1}, \boxed{2}", ("1, 2",)),
    (r"$\boxed{1}$ and $\boxed{2}$", ("1, 2", "2")),
    (r"\boxed{41}. No: \boxed{42}", ("42",)),
    (r"\boxed{42}. Again, \boxed{42}", ("42",)),
    (r"so \boxed{1} so \boxed{2} so \boxed{3} so \boxed{4}", ()),
    (r"so \boxed{1}, \boxed{2}, \boxed{3}, \boxed{4}", ("1, 2, 3, 4",)),
    ("The answer is 1. The answer is 2. The answer is 3. The answer is 4.", ()),
    ("#### 1\n#### 2\n#### 3\n#### 4", ()),
]


@pytest.mark.parametrize(("text", "readings"), UNTOLD)
def test_extraction_where_no_format_was_asked_for(text, readings):
    assert extract.extract_strict(text, None) == readings


def test_what_lies_far_before_the_end_is_no_answer():
    assert extract.extract_strict("\\boxed{42}" + " x" * extract.MAX_CHARACTERS, "boxed") == ()


def show(case):
    return f"{case[0]}:{case[1][:24]!r}"


@pytest.mark.parametrize("case", CASES, ids=show)
def test_extraction(case):
    answer_format, text, strict, lenient = case
    assert extract.extract_strict(text, answer_format) == (() if strict is None else (strict,))
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
    start = time.process_time()
    assert extract.extract_strict(text, "boxed") == ()
    assert extract.extract_lenient(text, "boxed", numeric=True) == text
    assert time.process_time() - start < 1


PIECES = "\\boxed{ } { \\ $ <answer> </answer> #### <think> </think> Answer: 42 -7 1,234 3/4 . ** x".split()
FRAGMENTS = st.lists(
    st.one_of(st.sampled_from([*PIECES, "\n", " ", "answer is "]), st.text(max_size=3)), max_size=14
).map("".join)


@settings(max_examples=400, deadline=None)
@given(FRAGMENTS, st.sampled_from(sorted(extract.ANSWER_FORMATS)), st.sampled_from(["42", "x", "-7", "", "3/4"]))
def test_lenient_is_at_least_as_generous_as_strict(text, answer_format, reference):
    for numeric in (False, True):
        if extract.extract_strict(text, answer_format):
            assert extract.extract_lenient(text, answer_format, numeric=numeric) is not None
    verdict = judge(text, reference, {"answer_format": answer_format}, lambda answer: float(answer == reference))
    assert verdict.parts["lenient"] >= verdict.parts["strict"] == verdict.score
    assert verdict.status in types.STATUSES
