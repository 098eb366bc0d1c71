"""Weighted sums and gates, by hand-computed tables; and the real verifiers through the one call."""

import pytest

from rlvr import errors, types
from rlvr.verifiers import base, combine

HALF = types.Verdict(0.5, "wrong", "half", parts={"strict": 0.5, "lenient": 1.0})
SAID = {
    "yes": types.Verdict(1.0, "correct", "fine", parts={"strict": 1.0, "lenient": 1.0}),
    "no": types.Verdict(0.0, "wrong", "bad", parts={"strict": 0.0, "lenient": 0.0}),
    "half": HALF,
    "loose": types.Verdict(0.0, "unparsed", "elsewhere", parts={"strict": 0.0, "lenient": 1.0}),
    "overlong": types.Verdict(0.0, "correct", "", parts={"strict": 0.0, "lenient": 0.0}),  # no punishment is right
    "slow": types.Verdict(0.0, "timeout", "", parts={"strict": 0.0, "lenient": 0.0}),
    "broken": base.make_failure("error", "no judge"),
    "code": types.Verdict(
        1.0, "correct", parts={"strict": 1.0, "lenient": 1.0, "gold": 0.25, "audit/exit": 1.0, "audit/literal": 0.0}
    ),
    "text": types.Verdict(1.0, "correct", parts={"strict": 1.0, "lenient": 1.0, "audit/exit": 0.0}),
}


def run(*parts, **row):
    """Combines verdicts of the table; returns the verdict and the names of the components that were asked."""
    asked = []

    def verify(verifier, completion, reference, payload):
        asked.append(verifier)
        return SAID[verifier]

    parts = [{"verifier": part[0], "weight": part[1], "gate": "gate" in part} for part in parts]
    return combine.verify_combine("text", "", {"parts": parts, **row}, verify), asked


@pytest.mark.parametrize(
    ("parts", "score", "status", "lenient"),
    [
        ([("yes", 0.5), ("half", 0.25), ("loose", 0.25)], 0.625, "wrong", 1.0),
        ([("yes", 1), ("no", 1)], 1.0, "correct", 1.0),
        ([("yes", 0.1), ("text", 0.2), ("code", 0.7)], 1.0, "correct", 1.0),
        ([("yes", 1), ("half", -0.5)], 0.75, "wrong", 0.75),  # the penalty is no smaller leniently
        ([("loose", 1), ("broken", 0)], 0.0, "unparsed", 1.0),
        ([("loose", 1), ("no", 1)], 0.0, "wrong", 1.0),
        ([("yes", 1), ("slow", 1)], 1.0, "correct", 1.0),
        # Gates: a closed one makes 0 of everything, wherever it stands; what was not asked is None.
        ([("yes", 1), ("no", 5, "gate")], 0.0, "wrong", 0.0),
        ([("yes", 1), ("slow", 0, "gate")], 0.0, "timeout", 0.0),
        ([("half", 0.5), ("yes", 0.5, "gate")], 0.75, "wrong", 1.0),
        ([("yes", 1), ("overlong", 0, "gate")], 1.0, "correct", 1.0),
        # A gate that is passed leniently: the others are asked, for the lenient score.
        ([("yes", 0.75), ("loose", 0.25, "gate")], 0.0, "unparsed", 1.0),
        ([("loose", 0, "gate"), ("broken", 1)], 0.0, "unparsed", 0.0),
        # Unscorable.
        ([("yes", 1), ("broken", 0.1)], None, "error", None),
        ([("yes", 1), ("broken", 0, "gate")], None, "error", None),
        ([("broken", 1), ("no", 0, "gate")], 0.0, "wrong", 0.0),  # known without it
    ],
)
def test_sums_and_gates(parts, score, status, lenient):
    verdict, asked = run(*parts)
    assert (verdict.score, verdict.status) == (score, status)
    checked = base._checked("combine", verdict)
    assert checked.status == status and checked.parts["lenient"] == lenient, checked
    for name, *_ in parts:
        assert verdict.parts[name] == (SAID[name].score if name in asked else None)


def test_a_closed_gate_asks_nobody_else_and_says_which_it_was():
    verdict, asked = run(("yes", 1), ("half", 1, "gate"), ("no", 0, "gate"), ("text", 0, "gate"))
    assert asked == ["half", "no"]  # gates first; half of it is passed leniently
    assert verdict.detail == "gate 'half': half"
    assert run(("yes", 1), ("no", 0, "gate"))[1] == ["no"]


def test_gold_and_the_audit_come_through():
    verdict, _ = run(("code", 0.5), ("text", 0.25), ("half", 0.5))
    assert (verdict.score, verdict.parts["gold"]) == (1.0, 0.5 * 0.25 + 0.25 + 0.25)
    assert (verdict.parts["audit/exit"], verdict.parts["audit/literal"]) == (1.0, 0.0)
    assert verdict.parts["code/gold"] == 0.25 and "code/audit/exit" not in verdict.parts
    assert run(("code", 1), ("no", 1, "gate"))[0].parts.get("gold") is None  # code was not asked
    assert run(("code", 1, "gate"), ("no", 1, "gate"))[0].parts["gold"] == 0


def test_real_verifiers():
    parts = [
        {"verifier": "regex", "pattern": "^<answer>", "name": "shape", "gate": True, "weight": 0},
        {"verifier": "numeric", "weight": 0.75, "answer_format": "tag"},
        {"verifier": "numeric", "name": "small", "weight": 0.25, "answer_format": "tag", "gold": ["1", "2", "4"]},
    ]
    verdict = base.verify("combine", "<answer>4</answer>", "4", {"parts": parts})
    assert (verdict.score, verdict.status) == (1.0, "correct"), verdict
    assert [verdict.parts[name] for name in ("shape", "numeric", "small")] == [1, 1, 1]
    assert base.verify("combine", "<answer>4</answer>", "5", {"parts": parts}).score == 0.25
    assert base.verify("combine", "<answer>4</answer>", "", {"parts": parts, "gold": ["5", "4"]}).score == 1
    verdict = base.verify("combine", "so <answer>4</answer>", "4", {"parts": parts})
    assert (verdict.score, verdict.parts["numeric"]) == (0.0, None)
    broken = [*parts, {"verifier": "json_schema", "weight": 0.1}]
    verdict = base.verify("combine", "<answer>4</answer>", "4", {"parts": broken})
    assert (verdict.score, verdict.parts["numeric"], verdict.parts["json_schema"]) == (None, 1, None)
    assert "'json_schema' is unscorable" in verdict.detail
    nested = [{"verifier": "combine", "parts": parts}, {"verifier": "regex", "pattern": "4", "name": "four"}]
    assert base.verify("combine", "<answer>4</answer>", "4", {"parts": nested}).score == 2


def test_fields_of_the_row_are_defaults_for_every_part():
    seen = []
    parts = [{"verifier": "a", "unit": "words"}, {"verifier": "b", "gold": "x", "name": "c"}]

    def verify(verifier, completion, reference, payload):
        seen.append((verifier, reference, dict(payload)))
        return SAID["yes"]

    combine.verify_combine("", "ref", {"parts": parts, "unit": "tokens", "completion_tokens": 3, "name": "row"}, verify)
    shared = {"unit": "tokens", "completion_tokens": 3}
    assert seen == [("a", "ref", shared | {"unit": "words"}), ("b", "x", shared)]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (None, "parts=None"),
        ([], r"parts=\[\]"),
        ([1], r"parts=\[1\]"),
        ([{}], r"parts\[0\]: verifier is missing"),
        ([{"verifier": "exact"}, {"verifier": "exact"}], "name='exact'"),
        ([{"verifier": "exact", "name": "strict"}], "name='strict'"),
        ([{"verifier": "exact", "name": "a/b"}], "name='a/b'"),
        ([{"verifier": "exact", "weight": "1"}], r"parts\[0\]: weight='1'"),
        ([{"verifier": "exact", "weight": float("nan")}], "weight=nan"),
        ([{"verifier": "exact", "weight": 0}], "no part is a gate or has a weight"),
        ([{"verifier": "exact", "gate": 1}], "gate=1"),
        ([{"verifier": "exact", "gold": 4}], "gold=4"),
    ],
)
def test_parts_that_cannot_be_used(parts, said):
    with pytest.raises(errors.DataError, match=said):
        combine.verify_combine("", "", {"parts": parts}, base.verify)
