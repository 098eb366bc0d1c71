"""Tables and verdicts against numbers worked out by hand."""

import dataclasses

import numpy as np
import pytest

from rlvr import errors
from rlvr.grid.comparison import collect_scores, compare, judge
from rlvr.grid.measures import History, Measure
from rlvr.grid.spec import Grid, Hypothesis, Point

BASE, OTHER, EMPTY = Point({}, "base"), Point({"objective.clip_high": 0.3}, "high"), Point({"steps": 3}, "none")
REWARD = Measure("reward/mean")
CLAIM = Hypothesis("higher is better", REWARD, "high", "above", "base")


def make_histories(**values):
    """{label: {seed: its last reward}}."""
    ids = {"base": BASE.id, "high": OTHER.id}
    return {
        ids[label]: {seed: History([{"step": 0, "reward/mean": value}]) for seed, value in by_seed.items()}
        for label, by_seed in values.items()
    }


def make_grid(*hypotheses):
    return Grid("", [BASE, OTHER, EMPTY], (0, 1, 2, 3), "base", [REWARD], hypotheses)


def test_a_table_pairs_by_seed():
    # Seeds 0 to 2 in common: differences 0.2, 0.1, 0.3; mean 0.2, s 0.1, t(2) = 4.302653: half 0.248414.
    histories = make_histories(base={0: 0.1, 1: 0.5, 2: 0.3, 3: 0.9}, high={2: 0.6, 0: 0.3, 1: 0.6})
    base, high, none = compare(make_grid(), REWARD, histories)
    assert base.mean.value == pytest.approx(0.45) and base.iqm.value == pytest.approx(0.4)
    assert base.difference is None and base.pairs == 0
    assert high.scores.seeds == (0, 1, 2) and high.pairs == 3
    assert high.mean.value == high.iqm.value == pytest.approx(0.5)
    assert high.mean.interval == pytest.approx((0.3, 0.6))  # of three runs 1/27 of the resamples are one run thrice
    assert high.difference.value == pytest.approx(0.2)
    assert high.difference.interval == pytest.approx((0.2 - 0.248414, 0.2 + 0.248414), abs=1e-6)
    assert none.mean is none.iqm is none.difference is None


def test_one_seed_has_no_interval():
    base, high, _ = compare(make_grid(), REWARD, make_histories(base={0: 0.1}, high={0: 0.4}))
    assert (base.mean.value, base.mean.interval) == (0.1, None)
    assert high.difference.value == pytest.approx(0.3) and high.difference.interval is None


@pytest.mark.parametrize(
    ("effects", "changes", "answer"),
    [
        ((0.2, 0.2, 0.3, 0.3), {}, "supported"),
        ((-0.2, -0.2, -0.3, -0.3), {}, "contradicted"),
        ((-0.2, 0.2, 0.3, 0.3), {}, "undecided"),
        ((0.2, 0.2, 0.3, 0.3), {"direction": "below"}, "contradicted"),
        ((-0.2, -0.2, -0.3, -0.3), {"direction": "below"}, "supported"),
        # The interval is 0.25 -+ 3.182446 * 0.057735 / 2 = (0.158131, 0.341869).
        ((0.2, 0.2, 0.3, 0.3), {"smallest_effect": 0.158}, "supported"),
        ((0.2, 0.2, 0.3, 0.3), {"smallest_effect": 0.1582}, "undecided"),
        ((0.2, 0.2, 0.3, 0.3), {"smallest_effect": 0.3418}, "undecided"),
        ((0.2, 0.2, 0.3, 0.3), {"smallest_effect": 0.3419}, "contradicted"),
        ((-0.2, -0.2, -0.3, -0.3), {"direction": "below", "smallest_effect": 0.1582}, "undecided"),
        ((0.2, 0.2, 0.3, 0.3), {"direction": "near", "smallest_effect": 0.3419}, "supported"),
        ((0.2, 0.2, 0.3, 0.3), {"direction": "near", "smallest_effect": 0.3418}, "undecided"),
        ((-0.2, -0.2, -0.3, -0.3), {"direction": "near", "smallest_effect": 0.158}, "contradicted"),
        ((-0.2, -0.2, -0.3, -0.3), {"direction": "near", "smallest_effect": 0.3419}, "supported"),
        ((0.0, 0.0, 0.0), {}, "contradicted"),
    ],
)
def test_verdicts(effects, changes, answer):
    histories = make_histories(base=dict.fromkeys(range(4), 0.0), high=dict(enumerate(effects)))
    hypothesis = dataclasses.replace(CLAIM, **changes)
    verdict = judge(hypothesis, make_grid(), histories)
    assert (verdict.answer, verdict.seeds) == (answer, len(effects))
    # Against a threshold it is the same, shifted.
    shifted = make_histories(high={seed: value + 5.0 for seed, value in enumerate(effects)})
    threshold = dataclasses.replace(hypothesis, other="", threshold=5.0)
    verdict = judge(threshold, make_grid(), shifted)
    assert verdict.answer == answer or min(effects) == max(effects)
    assert verdict.effect.value == pytest.approx(np.mean(effects))


@pytest.mark.parametrize(
    ("high", "seeds", "reason"),
    [
        ({}, 0, "no finished run has it"),
        ({0: 0.9}, 1, "one seed has no interval: at least two are needed"),
        ({7: 0.9, 8: 0.9}, 0, "no finished run has it"),  # no seed in common
        ({0: 0.5, 1: 0.5}, 2, "every seed has the same effect: no spread to judge it by"),
        ({0: 0.5, 1: 0.6}, 2, "the interval holds effects on both sides"),  # t(1) = 12.7
    ],
)
def test_too_few_seeds_decide_nothing(high, seeds, reason):
    verdict = judge(CLAIM, make_grid(), make_histories(base={0: 0.0, 1: 0.0}, high=high))
    assert (verdict.answer, verdict.seeds, verdict.reason) == ("undecided", seeds, reason)


def test_a_run_without_the_measure_is_left_out_and_said_so():
    histories = make_histories(base={0: 0.1, 1: 0.2, 2: None})
    scores = collect_scores(BASE, REWARD, histories)
    assert scores.seeds == (0, 1) and scores.missing == (2,)
    assert scores.values.tolist() == [[0.1], [0.2]]


def test_tasks_are_columns_and_must_be_the_same():
    def evaluated(**accuracies):
        return History([{"step": 0, **{f"eval/{task}/accuracy": value for task, value in accuracies.items()}}])

    measure = Measure("eval/*/accuracy")
    histories = {BASE.id: {0: evaluated(b=0.2, a=0.1), 1: evaluated(a=0.3, b=0.6)}}
    scores = collect_scores(BASE, measure, histories)
    assert scores.values.tolist() == [[0.1, 0.2], [0.3, 0.6]]
    assert scores.by_seed() == {0: pytest.approx(0.15), 1: pytest.approx(0.45)}
    line = compare(make_grid(), measure, histories)[0]
    assert line.mean.value == pytest.approx(0.3) and line.iqm.value == pytest.approx(0.25)
    with pytest.raises(errors.WorkdirError, match="different tasks in different seeds"):
        collect_scores(BASE, measure, {BASE.id: {0: evaluated(a=0.1), 1: evaluated(b=0.2)}})
