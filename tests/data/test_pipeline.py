"""The stream is a pure function of (config, index), covers each set once an epoch, and mixes by weight."""

import collections
import json
import pathlib
import subprocess
import sys

import pytest

from rlvr import errors
from rlvr.data import config, pipeline

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make_config(seed=0, weights=(3.0, 1.0), sizes=(40, 7)):
    names, operations = ("sums", "products"), ("+", "*")
    return config.DataConfig(
        tasks=tuple(
            config.TaskSetConfig(
                name=name, weight=weight, train_size=size, eval_size=5, options={"operations": [operation]}
            )
            for name, operation, weight, size in zip(names, operations, weights, sizes, strict=True)
        ),
        seed=seed,
    )


def test_the_stream_is_pure():
    stream = pipeline.make_train_stream(make_config())
    wanted = stream.batch(0, 200)
    for i in (199, 3, 150, 3, 0):  # in any order, again, and in a stream that has seen nothing else
        assert stream[i] == wanted[i]
    assert pipeline.make_train_stream(make_config()).batch(120, 30) == wanted[120:150]
    assert pipeline.make_train_stream(make_config(seed=1)).batch(0, 200) != wanted
    assert stream[2**40].task in ("sums", "products")
    with pytest.raises(IndexError):
        stream[-1]


def test_another_process_has_the_same_stream():
    code = (
        "import json; from rlvr.data import pipeline; from tests.data import test_pipeline as t;"
        "print(json.dumps([s.prompt for s in pipeline.make_train_stream(t.make_config()).batch(10, 60)]))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    wanted = [task.prompt for task in pipeline.make_train_stream(make_config()).batch(10, 60)]
    assert json.loads(run.stdout.splitlines()[-1]) == wanted


def test_each_problem_once_an_epoch_and_a_new_order_every_epoch():
    stream = pipeline.make_train_stream(make_config())
    for label, size in (("sums", 40), ("products", 7)):
        prompts = [task.prompt for task in stream.batch(0, 400) if task.task == label]
        epochs = [prompts[i : i + size] for i in range(0, len(prompts) - size + 1, size)]
        assert len(epochs) >= 7
        everything = {task.prompt for task in stream.sources[label]}
        assert len(everything) == size and all(set(epoch) == everything for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_neighbouring_seeds_share_no_epoch():
    """Grain seeds epoch e with seed + e: plain seeds 0 and 1 would repeat each other's epochs."""

    def list_epochs(seed):
        stream = pipeline.make_train_stream(make_config(seed=seed, weights=(1.0, 0.0)))
        return {tuple(task.prompt for task in stream.batch(40 * e, 40)) for e in range(4)}

    assert len(list_epochs(0) | list_epochs(1)) == 8


def test_sets_of_equal_length_are_not_tied_together():
    stream = pipeline.make_train_stream(make_config(weights=(1.0, 1.0), sizes=(20, 20)))
    drawn = {
        label: [stream.sources[label].index(t) for t in stream.batch(0, 40) if t.task == label]
        for label in stream.sources
    }
    assert drawn["sums"] != drawn["products"]


@pytest.mark.parametrize("weights", [(3.0, 1.0), (0.9, 0.1), (1.0, 1.0), (0.5, 0.25)])
def test_shares_follow_the_weights_in_every_stretch(weights):
    stream = pipeline.make_train_stream(make_config(weights=weights))
    for start in (0, 137):
        counts = collections.Counter(task.task for task in stream.batch(start, 100))
        assert counts["sums"] == pytest.approx(100 * weights[0] / sum(weights), abs=1.5)


def test_evaluation_sets_are_fixed_and_apart_from_training():
    made = pipeline.make_eval_sets(make_config(seed=0))
    again = pipeline.make_eval_sets(make_config(seed=5, sizes=(900, 300)))
    assert list(made) == ["sums", "products"]
    assert {k: list(v) for k, v in made.items()} == {k: list(v) for k, v in again.items()}
    trained = {task.prompt for task in pipeline.make_train_stream(make_config(sizes=(0, 0))).iter_distinct()}
    assert len(trained) > 15_000
    assert not trained & {task.prompt for tasks in made.values() for task in tasks}


def test_a_set_of_no_weight_is_only_evaluated():
    only = make_config(weights=(1.0, 0.0))
    assert {task.task for task in pipeline.make_train_stream(only).batch(0, 50)} == {"sums"}
    assert list(pipeline.make_eval_sets(only)) == ["sums", "products"]
    assert len(list(pipeline.make_train_stream(only).iter_distinct())) == 40
    with pytest.raises(errors.ConfigError, match="every weight is 0"):
        pipeline.make_train_stream(make_config(weights=(0.0, 0.0)))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"source": "arithmetics"},
            r"data.tasks\[1\].source='arithmetics' is not known; did you mean 'arithmetic'",
        ),
        ({"answer_format": "box"}, r"data.tasks\[1\].answer_format='box' is not known.*did you mean 'boxed'"),
        ({"weight": -1.0}, r"data.tasks\[1\].weight=-1.0 must be at least 0"),
        ({"weight": float("nan")}, r"data.tasks\[1\].weight=nan must be at least 0"),
        ({"weight": float("inf")}, "must be finite"),
        ({"eval_size": -1}, r"data.tasks\[1\].eval_size=-1 must be at least 0"),
        ({"weight": 0.0, "eval_size": 0}, r"data.tasks\[1\] \(products\) has weight=0 and eval_size=0"),
        ({"name": "sums"}, r"data.tasks\[1\].name: the label 'sums' is already that of data.tasks\[0\]"),
        ({"source": "gsm8k"}, r"data.tasks\[1\].path is empty"),
        ({"path": "x"}, r"data.tasks\[1\].path='x': arithmetic tasks have no files"),
    ],
)
def test_bad_fields_are_named(changes, message):
    bad = make_config()
    for field, value in changes.items():
        setattr(bad.tasks[1], field, value)
    with pytest.raises(errors.ConfigError, match=message):
        bad.validate()


def test_no_sets():
    with pytest.raises(errors.ConfigError, match=r"data.tasks is empty"):
        config.DataConfig().validate()


def test_heavy_packages_are_imported_only_where_they_are_used():
    code = (
        "import sys; from rlvr.data import pipeline; from tests.data import test_pipeline as t;"
        "pipeline.make_train_stream(t.make_config())[0];"
        "heavy = {'reasoning_gym', 'tensorflow_datasets', 'tensorflow', 'torch'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr
