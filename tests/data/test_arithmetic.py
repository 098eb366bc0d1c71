"""The arithmetic source: an honest split, and demonstrations as noisy as asked."""

import collections

import numpy as np
import pytest

from rlvr import errors
from rlvr.data import arithmetic, config, sources
from rlvr.verifiers import extract


def make(split="train", **kwargs):
    options = kwargs.pop("options", {})
    task_set = config.TaskSetConfig(**({"eval_size": 500 if split == "eval" else 0} | kwargs), options=options)
    return sources.make_source(task_set, split, "data.tasks[0]")


def list_problems(split, **options):
    return list(arithmetic.iter_problems(arithmetic.ArithmeticOptions(**options), split))


@pytest.mark.parametrize("operation", ["+", "-", "*"])
def test_split_is_disjoint_complete_and_closed_under_commutation(operation):
    sides = {split: list_problems(split, operations=(operation,)) for split in ("train", "eval")}
    texts = {split: {p.text for p in problems} for split, problems in sides.items()}
    wanted = {f"{a}{operation}{b}=" for a in range(100) for b in range(100) if operation != "-" or a >= b}
    assert texts["train"] | texts["eval"] == wanted
    assert len(sides["train"]) + len(sides["eval"]) == len(wanted)
    assert 0.17 < len(texts["eval"]) / len(wanted) < 0.23
    if operation != "-":
        for problems, own in ((sides[split], texts[split]) for split in texts):
            assert all(f"{p.right}{operation}{p.left}=" in own for p in problems)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_every_digit_stands_in_every_place_on_both_sides(split):
    problems = list_problems(split, operations=("+", "-"), allow_negative=True)
    for operation in "+-":
        seen = {
            (side, place, f"{getattr(p, side):02d}"[place])
            for p in problems
            if p.operation == operation
            for side in ("left", "right")
            for place in (0, 1)
        }
        assert len(seen) == 2 * 2 * 10


def test_problems_are_well_formed_and_answers_right():
    for task in make(options={"operations": ["+", "-", "*"], "allow_negative": True}, train_size=300):
        assert task.prompt.endswith("=")
        assert str(eval(task.prompt[:-1])) == task.answer == task.demonstration
        assert task.verifier == "numeric" and 0 <= task.prompt_id < 2**32


def test_without_negative_results_there_are_none():
    assert all(int(task.answer) >= 0 for task in make(options={"operations": ["-"]}))


def test_a_larger_set_only_adds_and_evaluation_never_moves():
    small, large = make(train_size=50), make(train_size=200)
    assert [t.prompt for t in small] == [t.prompt for t in large[:50]]
    assert [t.prompt for t in make("eval", train_size=7)] == [t.prompt for t in make("eval", train_size=70)]
    assert len(make("eval", eval_size=500)) == 500


def test_four_digits_are_not_listed():
    tasks = make(train_size=20, options={"digits": 4, "operations": ["+", "*"]})
    assert len({t.prompt for t in tasks}) == 20
    assert max(len(t.prompt) for t in tasks) == len("1234+1234=")


def test_noise_spoils_the_share_asked_for_by_one_digit_and_always_the_same():
    options = {"operations": ["+", "-"], "allow_negative": True, "demonstration_noise": 0.3}
    tasks = make(options=options)
    wrong = [t for t in tasks if t.demonstration != t.answer]
    assert 0.27 < len(wrong) / len(tasks) < 0.33
    places = collections.Counter()
    for task in wrong:
        assert len(task.demonstration) == len(task.answer) and str(int(task.demonstration)) == task.demonstration
        differing = [i for i, (a, b) in enumerate(zip(task.answer, task.demonstration, strict=True)) if a != b]
        assert len(differing) == 1 and task.demonstration[differing[0]].isdigit()
        places[len(task.answer) - differing[0]] += 1
    assert set(places) == {1, 2, 3}
    assert {t.prompt for t in make(options=options, train_size=400) if t.demonstration != t.answer} == {
        t.prompt for t in tasks[:400] if t.demonstration != t.answer
    }


def test_forgotten_carries_spoil_only_problems_with_a_carry_and_only_the_share_asked_for():
    tasks = {t.prompt: t for t in make(options={"operations": ["+", "-"], "forgotten_carries": 1.0})}
    worked = {"47+85=": "22", "99+1=": "90", "60-1=": "69", "12+34=": "46", "88-33=": "55", "5+5=": "0", "30-21=": "19"}
    assert len(worked.keys() & tasks.keys()) >= 3
    for prompt in worked.keys() & tasks.keys():
        assert tasks[prompt].demonstration == worked[prompt]
    spoilt = {p for p, t in tasks.items() if t.demonstration != t.answer}
    assert 0.5 < len(spoilt) / len(tasks) < 0.7
    some = make(options={"operations": ["+", "-"], "forgotten_carries": 0.4})
    share = sum(t.demonstration != t.answer for t in some) / len(spoilt)
    assert 0.37 < share < 0.43 and {t.prompt for t in some if t.demonstration != t.answer} <= spoilt


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        ("answer", {"47+85=": "231", "40-35=": "5", "7-9=": "2-"}),
        ("carries", {"47+85=": "11", "40-35=": "10", "7-9=": "0", "90+5=": "00", "5+96=": "11"}),
    ],
)
def test_hints(hint, shown):
    """Answers reversed; carries (borrows) from the units' place on. Demonstrations behind them make no mistake."""
    options = {"operations": ["+", "-"], "allow_negative": True, "forgotten_carries": 1.0, "eval_fraction": 0.0}
    tasks = {t.prompt: t for t in make(options={**options, "hint": hint}, hint_template="({hint}){prompt}")}
    for prompt, text in shown.items():
        assert tasks[prompt].hinted_prompt == f"({text}){prompt}"
    assert tasks["47+85="].demonstration == "22" and tasks["47+85="].hinted_demonstration == "132"
    plain = make(options=options)
    assert {t.prompt: t.prompt_id for t in plain} == {t.prompt: t.prompt_id for t in tasks.values()}
    assert not any(t.hinted_prompt or t.hinted_demonstration for t in plain[:100])


@pytest.mark.parametrize("answer_format", extract.ANSWER_FORMATS)
def test_demonstrations_are_in_the_format_that_is_rewarded(answer_format):
    task = make(train_size=3, answer_format=answer_format, instruction="Answer briefly.", system="Be exact.")[2]
    assert extract.extract_strict(task.demonstration, answer_format) == (task.answer,)
    assert task.payload == {"answer_format": answer_format}
    assert task.prompt.endswith("=\nAnswer briefly.") and task.system == "Be exact."


@pytest.mark.parametrize(
    "options, size, message",
    [
        ({"digit": 2}, 0, r"data.tasks\[0\].options\['digit'\] is not known; did you mean 'digits'\?"),
        ({"operations": ["+", "/"]}, 0, r"operations.*'/' is not known"),
        ({"operations": []}, 0, "one or more"),
        ({"digits": 5}, 0, "between 1 and 4"),
        ({"digits": 3}, 0, r"train_size=0 asks for every problem"),
        ({"demonstration_noise": 1.5}, 0, "between 0 and 1"),
        ({"digits": "2"}, 0, r"options\['digits'\]='2' must be a whole number"),
        ({"digits": 1.5}, 0, r"options\['digits'\]=1.5 must be a whole number"),
        ({"digits": True}, 0, r"options\['digits'\]=True must be a whole number"),
        ({"padding": float("inf")}, 0, r"options\['padding'\]=inf must be a finite number"),
        ({"eval_fraction": "0.2"}, 0, r"options\['eval_fraction'\]='0.2' must be a finite number"),
        ({"allow_negative": 1}, 0, r"options\['allow_negative'\]=1 must be True or False"),
        ({"operations": "+"}, 0, r"options\['operations'\]='\+' must be a list of texts"),
        ({"verifier": ["exact"]}, 0, r"options\['verifier'\]=\['exact'\] must be a text"),
        ({"padding": -1.0}, 0, r"options\['padding'\]=-1.0"),
        ({"verifier": "math"}, 0, r"options\['verifier'\]='math' is not known"),
        ({"hint": "result"}, 0, r"options\['hint'\]='result' is not known"),
        ({"hint": "carries", "operations": ["*"]}, 0, "a product has no single row of carries"),
        ({}, 9000, r"train_size=9000 is more than there are: 8\d\d\d train problems"),
        ({"digits": 1}, 101, r"train_size=101 is more than there are"),
    ],
)
def test_bad_options_are_named(options, size, message):
    with pytest.raises(errors.ConfigError, match=message):
        make(train_size=size, options=options)


def test_an_empty_split_is_an_error():
    with pytest.raises(errors.DataError, match="train split is empty"):
        make(options={"eval_fraction": 1.0})


def test_the_split_is_frozen():
    """Changing any of these would silently turn held-out problems of old runs into training problems."""
    assert [t.prompt for t in make("eval", eval_size=3)] == ["16+16=", "52+25=", "16+17="]
    assert make("eval", eval_size=1)[0].prompt_id == 2636093675


def test_padding_is_geometric_and_says_nothing():
    plain, padded = (
        make(options={"verifier": "exact", **options}) for options in ({}, {"padding": 3.0, "most_padding": 9})
    )
    spaces = np.array([len(task.demonstration) - len(task.demonstration.lstrip()) for task in padded])
    assert [task.demonstration.strip() for task in padded] == [task.demonstration for task in plain]
    share = 3 / 4  # that a space is followed by another
    counts = np.bincount(spaces, minlength=10)
    np.testing.assert_allclose(counts[:9] / len(spaces), (1 - share) * share ** np.arange(9), atol=0.01)
    assert len(counts) == 10 and counts[9] / len(spaces) == pytest.approx(share**9, abs=0.01)
    assert {task.verifier for task in padded} == {"exact"}
