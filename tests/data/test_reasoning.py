"""The reasoning-gym source: pure, disjoint, and scored as its generators do after a trip through JSON."""

import json

import pytest

from rlvr import errors
from rlvr.data import config, sources, tasks
from rlvr.verifiers import base

COMMON = """chain_sum basic_arithmetic leg_counting gcd lcm number_sorting count_bits spell_backward
letter_counting simple_equations countdown products decimal_arithmetic fraction_simplification
number_filtering base_conversion word_sorting time_intervals calendar_arithmetic
prime_factorization""".split()


def make(split="train", size=12, **kwargs):
    task_set = config.TaskSetConfig(
        **({"source": "reasoning_gym", "name": "chain_sum", "train_size": size, "eval_size": size} | kwargs)
    )
    return sources.make_source(task_set, split, "data.tasks[0]")


@pytest.mark.parametrize("name", COMMON)
def test_own_scorer_accepts_the_reference_after_json(name):
    made = make(name=name)
    for task in made[:4]:
        payload = json.loads(json.dumps(task.payload))
        assert payload == task.payload
        verdict = base.verify(task.verifier, task.answer, task.answer, payload)
        assert (verdict.score, verdict.status) == (1.0, "correct"), verdict
        wrong = base.verify(task.verifier, "no such answer", task.answer, payload)
        assert wrong.score < 1
    assert made[7] == make(name=name)[7] == make(name=name, size=8)[7]  # whatever was asked for before


def test_splits_are_disjoint_and_hold_no_question_twice():
    options = {"max_terms": 2, "max_digits": 1}  # 200 questions in all: seeds alone would not keep them apart
    train = [t.prompt for t in make("train", 120, options=options)]
    held_out = [t.prompt for t in make("eval", 20, options=options)]
    assert len(set(train)) == 120 and len(set(held_out)) == 20
    assert not set(train) & set(held_out)


def test_more_than_there_are_is_refused_with_the_number():
    with pytest.raises(errors.ConfigError, match=r"eval_size=500 is more than there are: \d\d different eval"):
        make("eval", 500, options={"max_terms": 2, "max_digits": 1})


def test_label_and_generator_may_differ():
    task = make(name="sums", options={"generator": "chain_sum", "max_terms": 2}, instruction="Be brief.")[0]
    assert task.task == "sums" and task.payload["dataset"] == "chain_sum"
    assert task.payload["options"] == {"max_terms": 2}
    assert task.prompt == f"{task.payload['entry']['question']}\nBe brief."
    assert task.prompt_id == tasks.compute_prompt_id("sums", task.prompt)


def test_the_seed_is_an_option_of_the_generator():
    assert make(options={"seed": 1})[0] != make(options={"seed": 2})[0]


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("chain_sums", {}, "name='chain_sums' is not a generator of reasoning-gym; did you mean 'chain_sum'"),
        (
            "chain_sum",
            {"max_term": 2},
            r"options\['max_term'\] is not known; did you mean 'max_terms'.*min_digits",
        ),
        ("chain_sum", {"seed": "1"}, r"options\['seed'\]='1' must be a whole number"),
        ("chain_sum", {"generator": 5}, r"options\['generator'\]=5 must be a text"),
        ("chain_sum", {"size": 2}, r"options\['size'\] is not known"),
        ("chain_sum", {"min_terms": 5, "max_terms": 2}, "'chain_sum' refuses options.*max_terms must be >="),
        ("chain_sum", {"seed": 2**31}, "seed.*between 0 and"),
        ("gcd", {"min_value": {1}}, "cannot be written as JSON"),
        ("simple_equations", {"operators": ["+"]}, "'simple_equations' cannot be used.*number of weights"),
        ("arc_agi", {}, "'arc_agi' cannot be used: its scorer does not accept"),
        ("composite", {}, "'composite' refuses options"),
    ],
)
def test_bad_generators_and_options_are_named(name, options, message):
    with pytest.raises(errors.ConfigError, match=message):
        make(name=name, options=options)


def test_a_size_is_needed():
    with pytest.raises(errors.ConfigError, match="train_size=0"):
        make(train_size=0)
