"""Pass rates: read, added up, and what they leave of the training tasks; arms."""

import json
import math

import pytest

from rlvr import errors
from rlvr.data import arms, config, pipeline
from rlvr.data.pass_rates import distinct_tasks, read_pass_rates


def make_config(sizes=(12, 6), **changes):
    sets = [
        config.TaskSetConfig(name=name, weight=weight, train_size=size, options={"operations": [operation]})
        for name, operation, weight, size in zip(("sums", "products"), "+*", (3.0, 1.0), sizes, strict=True)
    ]
    return config.DataConfig(tasks=tuple(sets), **changes)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def rates(tmp_path):
    """Task i of a set was right i times of 8, from 8 on always; the lines of a problem add up."""
    rows = []
    for source in pipeline.make_train_stream(make_config()).sources.values():
        for i, task in enumerate(source):
            for n, correct in ((3, min(i, 3)), (5, min(max(i - 3, 0), 5))):
                rows.append({"prompt_id": task.prompt_id, "task": task.task, "n": n, "correct": correct})
    return write(tmp_path / "rates.jsonl", rows)


def test_tasks_are_chosen_by_their_rates(rates):
    everything = pipeline.make_train_stream(make_config(pass_rates=rates))
    whole = pipeline.make_train_stream(make_config())
    assert everything.batch(0, 50) == whole.batch(0, 50)
    some = pipeline.make_train_stream(make_config(pass_rates=rates, pass_rate_low=0.125, pass_rate_high=0.5))
    for label in ("sums", "products"):
        assert list(some.sources[label]) == list(whole.sources[label])[1:5]
    assert [some.pass_rates[t.prompt_id] for t in some.sources["sums"]] == [1 / 8, 2 / 8, 3 / 8, 4 / 8]


def test_an_unknown_rate_and_an_empty_set_are_named(rates, tmp_path):
    with pytest.raises(errors.DataError, match=r"knows no rate of the training task of 'sums' that begins '\d+\+\d+='"):
        pipeline.make_train_stream(make_config(sizes=(13, 6), pass_rates=rates))
    with pytest.raises(errors.DataError, match=r"no training task of 'products' has a pass rate between .*=0\.9 and"):
        pipeline.make_train_stream(make_config(pass_rates=rates, pass_rate_low=0.9))
    first = pipeline.make_train_stream(make_config()).sources["sums"][0]
    for prompt_id, why in ((1, "measure it with"), (first.prompt_id, r"it was measured, but none .* \(n is 0\): mend")):
        row = {"prompt_id": prompt_id, "task": "sums", "n": 0, "correct": 0}
        unscored = write(tmp_path / "none.jsonl", [row])
        assert math.isnan(read_pass_rates(tmp_path / "none.jsonl")[prompt_id])
        with pytest.raises(errors.DataError, match=f"knows no rate .*{why}"):
            pipeline.make_train_stream(make_config(pass_rates=unscored))


def test_a_problem_is_measured_once():
    sums, products = (list(source) for source in pipeline.make_train_stream(make_config()).sources.values())
    distinct = distinct_tasks({"a": [*sums, *sums[:3]], "b": [*products, sums[5], *products]})
    assert {label: list(tasks) for label, tasks in distinct.items()} == {"a": sums, "b": products}


@pytest.mark.parametrize("changed", [{"correct": 9}, {"n": None}, {"prompt_id": "7"}, {"correct": True}])
def test_a_malformed_row_is_named(tmp_path, changed):
    path = write(tmp_path / "bad.jsonl", [{"prompt_id": 1, "n": 8, "correct": 1} | changed])
    with pytest.raises(errors.DataError, match=r"bad\.jsonl, line 1: prompt_id, n and correct must be integers"):
        pipeline.make_train_stream(make_config(pass_rates=path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pass_rate_low": 0.5}, r"choose by pass rates, but data\.pass_rates is empty"),
        ({"pass_rate_low": 0.5, "pass_rate_high": 0.4}, r"data\.pass_rate_high=0\.4 must be between 0\.5"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(errors.ConfigError, match=message):
        make_config(**changes).validate()


def test_arms(rates):
    stream = pipeline.make_train_stream(make_config(pass_rates=rates))
    mixture = arms.ARMS["mixture"](stream, 4)["mixture"]
    assert mixture.batch(0, 20) == stream.batch(0, 20)
    sets = arms.ARMS["task"](stream, 4)
    assert list(sets) == ["sums", "products"]
    for label, arm in sets.items():  # an arm's order is its set's own, whatever the others
        own = [task for task in stream.batch(0, 200) if task.task == label]
        assert own and arm.batch(0, len(own)) == own
    bins = arms.ARMS["bin"](stream, 4)
    assert list(bins) == ["0-0.25", "0.25-0.5", "0.5-0.75", "0.75-1"]
    for name, arm in bins.items():
        low, high = map(float, name.split("-"))
        found = {stream.pass_rates[task.prompt_id] for task in arm.iter_distinct()}
        assert all(low <= rate < high or rate == high == 1 for rate in found)
    assert sum(len(list(arm.iter_distinct())) for arm in bins.values()) == 18
    prompts = arms.ARMS["prompt"](stream, 4)["prompts"]
    assert list(prompts) == list(stream.iter_distinct())
    with pytest.raises(errors.ConfigError, match=r"curriculum\.arm='bin' needs data\.pass_rates"):
        arms.ARMS["bin"](pipeline.make_train_stream(make_config()), 4)
