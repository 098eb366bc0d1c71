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
        assert set(base.verify(verifier, wrong, reference, payload).parts.values()) == {0.0}, wrong  # no flag either


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


def test_reasoning_gym_rows_need_no_gold():
    entry = reasoning_gym.create_dataset("prime_factorization", size=1, seed=3)[0]
    payload = {"dataset": "prime_factorization", "entry": json.loads(json.dumps(entry))}
    assert base.verify("reasoning_gym", entry["answer"], "", payload).status == "correct"
    # The scorer raises on words: that is the answer's fault.
    verdict = base.verify("reasoning_gym", "no such answer", "", payload)
    assert (verdict.status, verdict.score) == ("unparsed", 0)
    said = {
        "entry=None": payload | {"entry": None},
        "entry='x'": payload | {"entry": "x"},
        "did you mean 'prime_factorization'": payload | {"dataset": "prime_factorisation"},
        "the entry lacks metadata": payload | {"entry": {"answer": "7"}},
        "cannot deal with this entry": payload | {"entry": {"answer": [7], "metadata": {}}},
        "refuses options": payload | {"options": {"min_value": -5}},
    }
    for message, broken in said.items():
        verdict = base.verify("reasoning_gym", "7", "", broken)
        assert verdict.status == "error" and message in verdict.detail, verdict


def test_references_and_payloads_that_cannot_work():
    verdict = base.verify("numeric", "1", "one", {})
    assert (verdict.status, verdict.score) == ("error", None) and "'one' is not a number" in verdict.detail
    verdict = base.verify("reasoning_gym", "1", "1", {"entry": {}})
    assert verdict.status == "error" and "dataset=None is not a generator" in verdict.detail
    verdict = base.verify("exact", "1", "1", {"answer_format": "json"})
    assert verdict.status == "error" and "answer_format='json'" in verdict.detail


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("no_score:wrong", "score=None with status 'wrong'"),
        ("part:score", "score=0.0 with status 'error'"),
        ("part:strict", "score=1.0 but strict=0.5"),
        ("part:lenient", "score=1.0 but lenient=None"),
        ("part:other", "other='high'"),
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
    assert (verdict.status, verdict.score, verdict.parts) == ("error", None, {"strict": None, "lenient": None})
    assert "misbehaving:run" in verdict.detail and said in verdict.detail


def test_an_error_of_the_verifiers_own_and_parts_without_a_value(misbehaving):
    verdict = base.verify(misbehaving, "no_score:error", "", {})
    assert verdict.parts == {"strict": None, "lenient": None, "judge": None, "length": 0.5}
    assert (verdict.status, verdict.score, verdict.detail) == ("error", None, "said so")


@pytest.mark.parametrize(
    ("completion", "golds", "status", "strict", "lenient"),
    [
        ("4", ["3", "4", "5"], "correct", 1, 1),
        ("6", ["3", "4"], "wrong", 0, 0),
        ("it is 3 or 4", ["3", "4", "5"], "unparsed", 0, 1),
        ("4", ["one", "4"], "correct", 1, 1),  # met in full: what the other would have said does not matter
        ("5", ["4", "one"], "error", None, None),  # perhaps right: nothing is known
        ("5", [], "error", None, None),
        ("5", [5], "error", None, None),
        ("5", "5", "error", None, None),
    ],
)
def test_several_golds(completion, golds, status, strict, lenient):
    verdict = base.verify("numeric", completion, "17", {"gold": golds})
    assert (verdict.status, verdict.score, verdict.parts["lenient"]) == (status, strict, lenient), verdict
    assert status != "error" or "gold=" in verdict.detail or "'one' is not a number" in verdict.detail


def test_the_best_of_several_golds(misbehaving):
    verdict = base.verify(misbehaving, "share:", "", {"gold": ["0.25", "0.75", "0.5"]})
    assert (verdict.status, verdict.score, verdict.detail) == ("wrong", 0.75, "{}")
    # One unreadable under one gold and wrong under another is wrong, and has the lenient score of either.
    verdict = base.verify(misbehaving, "share:", "", {"gold": ["unparsed", "0"]})
    assert (verdict.status, verdict.parts) == ("wrong", {"strict": 0, "lenient": 0.5})


def test_names(misbehaving):
    assert base.load(misbehaving)("say:hi", "", {}).detail == "hi"
    with pytest.raises(errors.ConfigError, match="did you mean 'numeric'"):
        base.check_names(["numerik"])
    with pytest.raises(errors.ConfigError, match="did you mean 'run'"):
        base.load("misbehaving:runn")
    with pytest.raises(errors.ConfigError, match="is not known"):
        base.check_names(["a module:function"])
