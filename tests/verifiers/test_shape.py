"""Verifiers of a completion's shape: tags, length, repetition, patterns, JSON."""

import json

import pytest

from rlvr.verifiers import base

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
LINKED = {"$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}}, "$ref": "#/$defs/node"}


def verify(name, completion, **payload):
    verdict = base.verify(name, completion, "", json.loads(json.dumps(payload)))
    assert verdict.seconds < 4
    return verdict


def scores(verdict):
    return verdict.parts["strict"], verdict.parts["lenient"]


@pytest.mark.parametrize(
    ("completion", "payload", "expected"),
    [
        ("<think>a</think><answer>b</answer>", {}, (1, 1)),
        (" <think>\na\n</think>\n\n<answer>b</answer>\n", {}, (1, 1)),
        ("Well. <think>a</think><answer>b</answer>", {}, (0, 1)),
        ("<think>a</think> so <answer>b</answer>", {}, (0, 1)),
        ("<think>a</think><answer>b</answer> done", {}, (0, 1)),
        ("<answer>b</answer><think>a</think>", {}, (0, 0)),
        ("<think>a<answer>b</answer></think>", {}, (0, 0)),
        ("<think>a</think><answer>b</answer><answer>c</answer>", {}, (0, 0)),
        ("<think>a</think><think>a</think><answer>b</answer>", {}, (0, 0)),
        ("<think>a<answer>b</answer>", {}, (0, 0)),
        ("<think>a</think><answer>b", {}, (0, 0)),
        ("</think>a<think><answer>b</answer>", {}, (0, 0)),
        ("<think> </think><answer>b</answer>", {}, (0, 0)),
        ("<think>a</think><answer>\n</answer>", {}, (0, 0)),
        ("<THINK>a</THINK><answer>b</answer>", {}, (0, 0)),
        ("", {}, (0, 0)),
        ("a</think><answer>b</answer>", {"prefilled": True}, (1, 1)),
        ("<think>a</think><answer>b</answer>", {"prefilled": True}, (0, 0)),
        ("<think>a</think> b", {"tags": ["think"], "rest": True}, (1, 1)),
        ("<think>a</think>  ", {"tags": ["think"], "rest": True}, (0, 0)),
        ("<plan>a</plan><code>b</code><test>c</test>", {"tags": ["plan", "code", "test"]}, (1, 1)),
    ],
)
def test_format(completion, payload, expected):
    assert scores(verify("format", completion, **payload)) == expected


@pytest.mark.parametrize(
    ("tokens", "score"),
    [(0, 0), (15, 0), (16, 0), (17, -0.25), (18, -0.5), (19, -0.75), (20, -1), (21, -1), (10**9, -1)],
)
def test_overlong_around_the_buffer_and_the_cap(tokens, score):
    verdict = verify("overlong", "text", max_tokens=20, buffer=4, completion_tokens=tokens)
    assert verdict.score == score and verdict.status == ("wrong" if score else "correct")


@pytest.mark.parametrize(
    ("payload", "score", "status"),
    [
        ({"max": 5, "completion_tokens": 5}, 1, "correct"),
        ({"max": 5, "completion_tokens": 6}, 0, "wrong"),
        ({"min": 5, "completion_tokens": 4}, 0, "wrong"),
        ({"min": 2, "max": 3, "unit": "words"}, 1, "correct"),
        ({"min": 1, "max": 11, "unit": "characters"}, 0, "wrong"),
        ({"min": 12, "max": 12, "unit": "characters"}, 1, "correct"),
        ({"target": 100, "completion_tokens": 100}, 1, "correct"),
        ({"target": 100, "completion_tokens": 80}, 0.8, "wrong"),
        ({"target": 100, "alpha": 0.001, "completion_tokens": 200}, 0.9, "wrong"),
        ({"target": 100, "completion_tokens": 900}, 0, "wrong"),
        ({"max": 100, "alpha": 0.01, "completion_tokens": 90}, 0.6, "correct"),
        ({"max": 100, "alpha": 0.01, "completion_tokens": 130}, 0.2, "wrong"),
        ({"max": 100, "alpha": 0.01, "delta": 0, "completion_tokens": 90}, 0.1, "correct"),
        ({"max": 100, "alpha": 1, "completion_tokens": 0}, 1, "correct"),
    ],
)
def test_length(payload, score, status):
    verdict = verify("length", "two words, \U0001f600", **payload)
    assert verdict.score == pytest.approx(score) and verdict.status == status
    assert set(verdict.parts) == {"strict", "lenient", "length"}


@pytest.mark.parametrize(
    ("text", "payload", "repeated"),
    [
        ("a b c d e", {}, 0),
        ("a b", {}, 0),
        ("", {}, 0),
        ("a b c a b c", {}, 1 / 4),  # abc bca cab abc
        ("no NO no no no", {"n": 1}, 4 / 5),
        ("x " * 103, {}, 100 / 101),
    ],
)
def test_repetition(text, payload, repeated):
    verdict = verify("repetition", text, **payload)
    assert verdict.parts["repeated"] == pytest.approx(repeated)
    assert verdict.score == pytest.approx(-repeated) and verdict.status == ("wrong" if repeated else "correct")
    assert verify("repetition", text, **payload, tolerance=repeated).score == 0


@pytest.mark.parametrize(
    ("completion", "payload", "expected"),
    [
        ("The year 1984.", {"pattern": r"\d{4}"}, (1, 1)),
        ("The year 1984.", {"pattern": r"\d{4}", "mode": "full"}, (0, 0)),
        ("1984\n", {"pattern": r"\d{4}", "mode": "full"}, (0, 1)),
        ("The year", {"pattern": "the", "mode": "match"}, (0, 0)),
        ("The year", {"pattern": "the", "mode": "match", "flags": ["ignore_case"]}, (1, 1)),
        ("sorry", {"pattern": "sorry", "negate": True}, (0, 0)),
        ("<think>1984</think>none", {"pattern": r"\d{4}"}, (0, 0)),
        ("<think>1984", {"pattern": r"\d{4}"}, (0, 0)),
    ],
)
def test_regex(completion, payload, expected):
    assert scores(verify("regex", completion, **payload)) == expected


@pytest.mark.parametrize(
    ("completion", "schema", "status", "lenient"),
    [
        ('{"a": 1}', OBJECT, "correct", 1),
        (' {"a": 1}\n', OBJECT, "correct", 1),
        ('<think>{"a": "x"}</think>{"a": 1}', OBJECT, "correct", 1),
        ('{"a": "1"}', OBJECT, "wrong", 0),
        ('{"a": 1, "b": 2}', OBJECT, "wrong", 0),
        ('```json\n{"a": 1}\n```', OBJECT, "unparsed", 1),
        ('It is {"a": "x"}, no, {"a": 1}.', OBJECT, "unparsed", 1),
        ('{"a": 1} {"a": 2}', OBJECT, "unparsed", 1),
        ("{'a': 1}", OBJECT, "unparsed", 0),
        ('{"a": NaN}', {}, "unparsed", 0),
        ("", True, "unparsed", 0),
        ("null", True, "correct", 1),
        ("null", False, "wrong", 0),
        ("[[], [[]]]", LINKED, "correct", 1),
        ("[" * 600 + "]" * 600, LINKED, "wrong", 0),
        ("[" * 200_000, True, "unparsed", 0),
        ("9" * 5000, True, "unparsed", 0),
        ("\x00", True, "unparsed", 0),
        ("x" * 10_000_000, True, "unparsed", 0),
        ("[1," * 300_000, True, "unparsed", 0),
    ],
)
def test_json_schema(completion, schema, status, lenient):
    verdict = verify("json_schema", completion, schema=schema)
    assert (verdict.status, verdict.score, verdict.parts["lenient"]) == (status, float(status == "correct"), lenient)


@pytest.mark.parametrize(
    ("name", "payload", "said"),
    [
        ("format", {"tags": []}, "tags=[]"),
        ("format", {"tags": ["a", "a"]}, "tags=['a', 'a']"),
        ("format", {"tags": ["a>b"]}, "tags=['a>b']"),
        ("format", {"rest": 1}, "rest=1"),
        ("overlong", {"max_tokens": 20, "buffer": 4}, "completion_tokens is missing"),
        ("overlong", {"max_tokens": 20, "buffer": 21, "completion_tokens": 1}, "buffer=21"),
        ("overlong", {"max_tokens": 20, "buffer": 0, "completion_tokens": 1}, "buffer=0"),
        ("overlong", {"max_tokens": "20", "buffer": 2, "completion_tokens": 1}, "max_tokens='20'"),
        ("length", {"completion_tokens": 1}, "target"),
        ("length", {"min": 1, "target": 1, "completion_tokens": 1}, "target"),
        ("length", {"max": 5}, "completion_tokens is missing"),
        ("length", {"max": 5, "unit": "tokns", "completion_tokens": 5}, "did you mean 'tokens'"),
        ("length", {"min": 5, "max": 4, "unit": "words"}, "max=4"),
        ("length", {"max": True, "unit": "words"}, "max=True"),
        ("length", {"target": 5, "alpha": float("inf"), "unit": "words"}, "alpha=inf"),
        ("repetition", {"n": 0}, "n=0"),
        ("repetition", {"n": 2.5}, "n=2.5"),
        ("repetition", {"n": 10**6}, "n=1000000"),
        ("repetition", {"tolerance": 2}, "tolerance=2"),
        ("regex", {}, "pattern is missing"),
        ("regex", {"patern": "a"}, "did you mean 'patern'"),
        ("regex", {"pattern": "("}, "pattern='('"),
        ("regex", {"pattern": 3}, "pattern=3"),
        ("regex", {"pattern": "a", "mode": "fulll"}, "did you mean 'full'"),
        ("regex", {"pattern": "a", "flags": ["x"]}, "flags='x'"),
        ("json_schema", {}, "schema is missing"),
        ("json_schema", {"schema": "{}"}, "schema='{}'"),
        ("json_schema", {"schema": {"type": "objekt"}}, "schema="),
        ("json_schema", {"schema": {"$ref": "#"}}, "endless"),
        ("json_schema", {"schema": {"$ref": "https://example.org/other"}}, "stands alone"),
        ("json_schema", {"schema": {"$schema": "draft-99"}}, "$schema='draft-99'"),
        ("json_schema", {"schema": {"enum": ["x" * 300_000]}}, "at most"),
    ],
)
def test_bad_rows(name, payload, said):
    verdict = base.verify(name, "1", "", payload)
    assert (verdict.status, verdict.score) == ("error", None)
    assert said in verdict.detail, verdict.detail
    assert "accepted: " in verdict.detail or len(verdict.detail) == 500


@pytest.mark.parametrize("completion", ["a b " * 2_500_000, "\x00" * 1000, "\ud800\x1b[31m", "<think>" * 1_000_000])
def test_any_text_gets_a_verdict(completion):
    assert verify("format", completion).score == 0
    assert verify("repetition", completion).score <= 0
    assert verify("length", completion, max=3, unit="characters").score == 0
    assert verify("regex", completion, pattern="^zzz$").score == 0
