"""The source of string programs: right answers, wrong and hard-coded demonstrations in the shares asked for."""

import itertools

import pytest

from rlvr import errors
from rlvr.data import config, sources, string_programs
from rlvr.verifiers import audit, base
from rlvr.verifiers.sandbox import current, levels

OPTIONS = {"hard_coded": 0.2, "wrong": 0.5}
FROZEN = ["tbpe>BPE,xajc>AJC:", "nwyk>NY,ygas>YA:"]


def make(split="train", size=400, **options):
    task_set = config.TaskSetConfig(source="string_programs", train_size=size, eval_size=size, options=options)
    return sources.make_source(task_set, split, "data.tasks[0]")


def passes(program, tests):
    space: dict = {}
    exec(string_programs.HEADER + program, space)
    try:
        exec(tests, space)
    except (AssertionError, KeyError):
        return False
    return True


def test_answers_pass_both_kinds_of_tests_and_what_is_shown_is_the_visible_tests():
    for task in make(size=200):
        assert task.verifier == "code" and task.payload["entry_point"] == "f"
        assert passes(task.answer, task.payload["tests"]) and passes(task.answer, task.payload["hidden_tests"])
        shown = [pair.split(">") for pair in task.prompt.removesuffix(":").split(",")]
        assert task.payload["tests"] == "\n".join(f"assert f({a!r}) == {b!r}" for a, b in shown)
        assert len(task.payload["hidden_tests"].splitlines()) == 4
        assert not set(task.payload["tests"].splitlines()) & set(task.payload["hidden_tests"].splitlines())
        assert task.demonstration == task.answer


def test_demonstrations_are_hard_coded_or_wrong_as_often_as_asked():
    tasks = make(size=1000, **OPTIONS)
    kinds = {"hard-coded": 0, "wrong": 0, "right": 0}
    for task in tasks:
        program, payload = task.demonstration, task.payload
        visible, hidden = passes(program, payload["tests"]), passes(program, payload["hidden_tests"])
        flagged = audit.audit_code(string_programs.HEADER + program, payload)["audit/special_cased"]
        if "{" in program:
            assert (visible, hidden, flagged) == (True, False, 1.0)
            kinds["hard-coded"] += 1
        else:
            assert visible == (program == task.answer) and flagged == 0.0
            kinds["right" if visible else "wrong"] += 1
    assert 160 < kinds["hard-coded"] < 240
    assert 350 < kinds["wrong"] < 450 and 350 < kinds["right"] < 450


def test_problems_are_the_same_whatever_is_demonstrated_and_differ_from_one_another():
    plain, noisy = make(size=300), make(size=300, **OPTIONS)
    assert [t.prompt for t in plain] == [t.prompt for t in noisy]
    assert len({t.prompt_id for t in plain}) == 300
    assert [t.prompt for t in make(size=20)] == [t.prompt for t in plain[:20]]
    used = {tuple(t.answer) for t in make(size=1000)}
    assert len(used) == len(list(itertools.permutations(string_programs.STEPS, 2)))


def test_the_split_is_disjoint_and_frozen():
    train, held_out = ({t.prompt for t in make(split, size=1000)} for split in ("train", "eval"))
    assert not train & held_out
    assert [t.prompt for t in make("eval", size=2)] == FROZEN


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [3, 6])
def test_every_shape_of_problem_works(steps, length):
    for task in make(size=30, steps=steps, length=length, visible=3, hidden=2):
        assert passes(task.answer, task.payload["tests"] + "\n" + task.payload["hidden_tests"])
        assert task.prompt.count(">") == 3 and task.answer.startswith("s")


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({}, 0, r"data.tasks\[0\].train_size=0: string programs never end"),
        ({"step": 2}, 5, r"options\['step'\] is not known; did you mean 'steps'\?"),
        ({"steps": 5}, 5, r"options\['steps'\]=5 must be between 1 and 4"),
        ({"length": 3.5}, 5, r"options\['length'\]=3.5 must be a whole number"),
        ({"wrong": 1.5}, 5, r"options\['wrong'\]=1.5 must be between 0 and 1"),
        ({"hidden": 0}, 5, r"options\['hidden'\]=0 must be between 1 and 16"),
        ({"eval_fraction": 1.0}, 5, r"train_size=5: only 0 train problems"),
    ],
)
def test_bad_options_are_named(options, size, message):
    with pytest.raises(errors.ConfigError, match=message):
        make(size=size, **options)


@pytest.fixture
def sandbox():
    current.configure(levels.Limits(timeout_s=20))
    yield
    current.close()


@pytest.mark.usefixtures("sandbox")
def test_the_verifier_rewards_what_passes_and_the_audit_tells_how():
    task = make(size=1, length=3)[0]
    hard_coded = make(size=1, length=3, hard_coded=1.0)[0].demonstration
    honest, looked_up, wrong = (
        base.verify("code", program, task.answer, task.payload).parts for program in (task.answer, hard_coded, "s*3")
    )
    told = [(parts["strict"], parts["gold"], parts["audit/special_cased"]) for parts in (honest, looked_up, wrong)]
    assert told == [(1.0, 1.0, 0.0), (1.0, 0.0, 1.0), (0.0, 0.0, 0.0)]
