"""Multiple choice, and the overlap of words."""

import pytest

from rlvr.verifiers import base

CITIES = {"choices": ["Paris", "London", "Rome"]}


@pytest.mark.parametrize(
    ("completion", "gold", "payload", "status", "lenient"),
    [
        ("B", "B", {}, "correct", 1),
        ("(b)", "B", {}, "correct", 1),
        ("**B**", "(B)", {}, "correct", 1),
        ("answer: B", "B", {}, "correct", 1),
        ("The answer is (B).", "B", {}, "correct", 1),
        (r"so $\boxed{\text{(B)}}$", r"\text{B}", {}, "correct", 1),
        ("<think>A? C?</think>B.", "B", {}, "correct", 1),
        ("option b", "B", {}, "correct", 1),
        ("B. Paris", "B", {}, "correct", 1),
        ("I would say it is B, then.", "B", {}, "unparsed", 1),
        ("I would say it is C, then.", "B", {}, "unparsed", 0),
        ("It must be A.", "A", {}, "unparsed", 1),
        ("A dog barks.", "A", {}, "unparsed", 0),
        ("A or B", "B", {}, "wrong", 0),
        ("A and B", "A", {}, "wrong", 0),
        ("The answer is A or B.", "B", {}, "wrong", 0),
        (r"\boxed{A, B}", "A", {}, "wrong", 0),
        (r"\boxed{A} \boxed{B} \boxed{C} \boxed{D}", "D", {}, "wrong", 1),
        ("A. Because B is not valid", "A", {}, "wrong", 0),
        ("The answer is (A). No: the answer is (B).", "B", {}, "correct", 1),
        ("ABCDE", "B", {}, "unparsed", 0),
        ("Z", "B", {}, "unparsed", 0),
        ("", "B", {}, "unparsed", 0),
        # with the texts of the options
        ("London", "B", CITIES, "correct", 1),
        ("london.", "London", CITIES, "correct", 1),
        ("(B) London", "London", CITIES, "correct", 1),
        ("A. London", "B", CITIES, "wrong", 0),
        ("Paris", "B", CITIES, "wrong", 0),
        ("D", "B", CITIES, "unparsed", 0),
        ("y", "Y", {"choices": {"X": "one", "Y": "two"}}, "correct", 1),
        ("4", "B", {"choices": [3, 4]}, "correct", 1),
        ("B", "Q7", {}, "error", None),
        ("B", "", {}, "error", None),
        ("B", "Berlin", CITIES, "error", None),
        ("B", "B", {"choices": "ABC"}, "error", None),
        ("B", "B", {"choices": []}, "error", None),
        ("B", "B", {"choices": [["B"]]}, "error", None),
    ],
)
def test_choice(completion, gold, payload, status, lenient):
    verdict = base.verify("choice", completion, gold, payload)
    assert (verdict.status, verdict.parts["lenient"]) == (status, lenient), verdict
    assert verdict.score == (None if status == "error" else float(status == "correct"))


@pytest.mark.parametrize(
    ("completion", "gold", "score", "exact"),
    [
        ("hello world", "hello world", 1, 1),
        ("The cat!", "a  CAT", 1, 1),
        ("world hello", "hello world", 1, 0),
        ("hello world", "hello", 2 / 3, 0),
        ("b b c", "b c c d", 2 * 2 / 7, 0),
        ("hello world", "goodbye", 0, 0),
        ("<think>the cat?</think><answer>hello world</answer>", "hello world", 1, 1),
        ("say <answer>hello world</answer> now", "hello", 2 / 3, 0),
        ("The answer is Paris", "Paris", 2 * 1 / 4, 0),  # as SQuAD: only markup marks an answer
        ("the", "an", 1, 1),
        ("", "cat", 0, 0),
    ],
)
def test_f1(completion, gold, score, exact):
    verdict = base.verify("f1", completion, gold, {})
    assert verdict.score == pytest.approx(score) and verdict.parts["exact_match"] == exact
    assert (verdict.status == "correct") == (score == 1)


def test_f1_of_several_golds_is_the_best():
    verdict = base.verify("f1", "hello world", "", {"gold": ["goodbye", "hello", "hello old world"]})
    assert verdict.score == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("payload", "answer", "status"),
    [
        ({"tolerance": 0.5}, "10.5", "correct"),
        ({"tolerance": 0.5}, "10.51", "wrong"),
        ({"relative_tolerance": 0.01}, "9.9", "correct"),
        ({"relative_tolerance": 0.01}, "9.8", "wrong"),
        ({"tolerance": -1}, "10", "error"),
        ({"tolerance": True}, "10", "error"),
        ({"tolerance": "1"}, "10", "error"),
        ({"relative_tolerance": float("nan")}, "10", "error"),
        ({}, "10 km", "correct"),
        ({}, "$10.00", "correct"),
        ({}, "10^1", "correct"),
        ({}, "\u0661\u0660", "correct"),
    ],
)
def test_numeric(payload, answer, status):
    verdict = base.verify("numeric", answer, "10", payload)
    assert verdict.status == status
    assert status != "error" or "tolerance=" in verdict.detail


@pytest.mark.parametrize("verifier", ["math", "numeric", "exact", "choice", "f1"])
def test_empty_references(verifier):
    verdict = base.verify(verifier, "1", " ", {})
    assert (verdict.status, verdict.score) == ("error", None) and "gold=' '" in verdict.detail
