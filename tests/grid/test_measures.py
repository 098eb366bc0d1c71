"""Numbers of a run, by hand."""

import json

import numpy as np
import pytest

from rlvr.grid.measures import History, Measure, read_history


def history(**series):
    names = {name.replace("__", "/"): values for name, values in series.items()}
    count = max(map(len, names.values()))
    rows = [{"step": step, "phase": "rl"} for step in range(count)]
    for name, values in names.items():
        for row, value in zip(rows, values, strict=False):
            if value is not ...:
                row[name] = value
    return History(rows)


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        (Measure("reward/mean"), 9.0),
        (Measure("reward/mean", "mean"), 4.5),
        (Measure("reward/mean", "mean", 0.3), 8.0),
        (Measure("reward/mean", "mean", 0.25), 8.0),  # whole steps, rounded up
        (Measure("reward/mean", "mean", 0.01), 9.0),
        (Measure("reward/mean", "slope"), 1.0),
        (Measure("square", "slope", 0.3), 16.0),  # 49, 64, 81 at 7, 8, 9
        (Measure("square", "slope"), 9.0),
    ],
)
def test_summaries(measure, value):
    own = history(reward__mean=list(range(10)), square=[step**2 for step in range(10)])
    assert own.measure(measure) == {measure.metric: pytest.approx(value)}


def test_values_that_are_missing_or_not_finite_are_left_out():
    own = history(x=[1.0, None, ..., 4.0, None], y=[..., ..., ..., ..., 2.0])
    assert own.measure(Measure("x")) == {"x": 4.0}
    assert own.measure(Measure("x", "slope")) == {"x": 1.0}
    assert own.measure(Measure("x", "mean", 0.4)) == {"x": 4.0}
    assert np.isnan(own.measure(Measure("x", "mean", 0.2))["x"])
    assert np.isnan(own.measure(Measure("y", "slope"))["y"])
    assert np.isnan(own.measure(Measure("z"))["z"])


def test_a_star_stands_for_every_task():
    own = history(eval__gcd__accuracy=[0.5, 0.6], eval__a_b__accuracy=[0.1, 0.2], eval__gcd__accuracy_lenient=[1, 1])
    assert own.measure(Measure("eval/*/accuracy")) == {"eval/a_b/accuracy": 0.2, "eval/gcd/accuracy": 0.6}
    assert own.measure(Measure("nothing/*")) == {}


def test_only_the_rl_is_read_and_its_tokens_are_counted(tmp_path):
    rows = [
        {"step": 0, "phase": "warm_start", "loss/supervised": 1.0},
        {"step": 1, "phase": "rl", "rollout/tokens": 12.0},
        {"step": 2, "phase": "rl", "rollout/tokens": 20.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = read_history(tmp_path)
    assert [row["step"] for row in own.rows] == [0, 1]
    assert own.sampled_tokens() == 32.0
    assert np.isnan(read_history(tmp_path / "none").sampled_tokens())
