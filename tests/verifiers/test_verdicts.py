"""What the built-in verifiers say, and how malformed verdicts are caught. No process is started here."""

import gzip
import json
import pathlib

import pytest
import reasoning_gym

from rlvr import errors
from rlvr.verifiers import base

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"


def read_rows(name, count):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line, _ in zip(file, range(count), strict=False)]


@pytest.fixture
def misbehaving(monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
    return "misbehaving:run"


@pytest.mark.parametrize(
    ("verifier", "reference", "completion", "answer_format", "status", "lenient"),
    [
        ("exact", "the  cat", " the cat\n", "bare", "correct", 1),
        ("exact", "the cat", "The cat", "bare", "wrong", 0),
        ("exact", "cat", "<answer>cat</answer>", "bare", "wrong", 1),
        ("exact", "cat", "cat", "tag", "unparsed", 1),
        ("numeric", "0.5", "1/2", "bare", "correct", 1),
        ("numeric", "1000", "1,000.0", "bare", "correct", 1),
        ("numeric", "0.3333", "1/3", "bare", "wrong", 0),
        ("numeric", "18", "She makes $18 a day.", "bare", "unparsed", 1),
        ("numeric", "18", "She makes $17 a day.", "bare", "unparsed", 0),
        ("numeric", "50", "#### 50%", "hash", "correct", 1),
        ("numeric", "9007199254740993", "9007199254740992", "bare", "wrong", 0),
    ],
)
def test_plain_verifiers(verifier, reference, completion, answer_format, status, lenient):
    verdict = base.verify(verifier, completion, reference, {"answer_format": answer_format})
    assert (verdict.status, verdict.parts["lenient"]) == (status, lenient)
    assert verdict.score == verdict.parts["strict"] == float(status == "correct")
    assert verdict.seconds > 0


@pytest.mark.parametrize(
    ("reference", "answer", "status"),
    [
        ("\\frac{1}{2}", "0.5", "correct"),
        ("\\frac{1}{2}", "\\dfrac{2}{4}", "correct"),
        ("2\\sqrt{2}", "\\sqrt{8}", "correct"),
        ("x^2-1", "(x-1)(x+1)", "correct"),
        ("p - q", "-q+p", "correct"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)", "correct"),
        ("\\{1,2\\}", "\\{2,1\\}", "correct"),
        ("5", "x = 5", "correct"),
        ("\\text{Evelyn}", "Evelyn", "correct"),
        ("\\text{Evelyn}", "\\text{Angela}", "wrong"),
        ("\\frac{1}{2}", "\\frac{1}{3}", "wrong"),
        ("x^2-1", "(x-1)^2", "wrong"),
        ("(3,4)", "(4,3)", "wrong"),
        ("\\sqrt{2}", "1.41", "wrong"),
    ],
)
def test_math_equivalence(reference, answer, status):
    payload = {"answer_format": "boxed"}
    assert base.verify("math", f"Thus \\boxed{{{answer}}}.", reference, payload).status == status


def test_math_on_real_rows():
    rows = read_rows("math/math500.jsonl.gz", 60)
    payload = {"answer_format": "boxed"}
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        assert base.verify("math", row["solution"], row["answer"], payload).status == "correct", row["answer"]
        status = base.verify("math", other["solution"], row["answer"], payload).status
        same = other["answer"].rpartition("=")[2] == row["answer"].rpartition("=")[2]  # x=5 answers 5
        assert status == ("correct" if same else "wrong"), (row, other)


@pytest.mark.parametrize("verifier", ["numeric", "math"])
def test_gsm8k_on_real_rows(verifier):
    payload = {"answer_format": "hash"}
    for row in read_rows("gsm8k/test.jsonl.gz", 1500 if verifier == "numeric" else 50):
        reference = row["final_answer"]
        assert base.verify(verifier, row["answer"], reference, payload).status == "correct", row["answer"]
        wrong = row["answer"] + "1"
        assert base.verify(verifier, wrong, reference, payload).parts == {"strict": 0, "lenient": 0}, wrong


@pytest.mark.parametrize("dataset", ["basic_arithmetic", "gcd", "countdown", "propositional_logic"])
def test_reasoning_gym_scores_as_the_generator(dataset):
    score = reasoning_gym.get_score_answer_fn(dataset)
    for entry in reasoning_gym.create_dataset(dataset, size=3, seed=5):
        payload = json.loads(json.dumps({"dataset": dataset, "entry": entry, "answer_format": "tag"}))
        reference = entry["answer"] or ""
        for answer in (reference, "17", "(A and B)"):
            verdict = base.verify("reasoning_gym", f"<answer>{answer}</answer>", reference, payload)
            expected = score(answer, entry) if answer else 0.0
            assert verdict.score == expected
            assert verdict.status == ("unparsed" if not answer else "correct" if expected >= 1 else "wrong")


def test_references_and_payloads_that_cannot_work():
    verdict = base.verify("numeric", "1", "one", {})
    assert (verdict.status, verdict.score) == ("error", 0) and "'one' is not a number" in verdict.detail
    verdict = base.verify("reasoning_gym", "1", "1", {"entry": {}})
    assert verdict.status == "error" and "lacks dataset" in verdict.detail
    verdict = base.verify("exact", "1", "1", {"answer_format": "json"})
    assert verdict.status == "error" and "answer_format='json'" in verdict.detail


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("nan:nan", "score=nan"),
        ("nan:-inf", "score=-inf"),
        ("not_a_verdict:", "returned a bool"),
        ("raise:oops", "ZeroDivisionError: oops"),
        ("sys_exit:3", "SystemExit: 3"),
        ("regular_nonsense:", "KeyError"),
    ],
)
def test_broken_verifiers_give_errors_that_name_them(misbehaving, action, said):
    verdict = base.verify(misbehaving, action, "", {})
    assert (verdict.status, verdict.score, verdict.parts) == ("error", 0, {"strict": 0, "lenient": 0})
    assert "misbehaving:run" in verdict.detail and said in verdict.detail


def test_names(misbehaving):
    assert base.load(misbehaving)("say:hi", "", {}).detail == "hi"
    with pytest.raises(errors.ConfigError, match="did you mean 'numeric'"):
        base.check_names(["numerik"])
    with pytest.raises(errors.ConfigError, match="did you mean 'run'"):
        base.load("misbehaving:runn")
    with pytest.raises(errors.ConfigError, match="is not known"):
        base.check_names(["a module:function"])
