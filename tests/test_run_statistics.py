"""Statistics of several runs against rliable, exact enumeration, and numbers worked out by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats

from rlvr import statistics
from rlvr.statistics import arithmetic_mean, interquartile_mean, mean_band, stratified_interval, student_interval

FIVE_BY_TWO = np.array([[0.91, 0.30], [0.967, 0.42], [0.924, 0.11], [0.88, 0.27], [0.955, 0.36]])
SEVEN = np.array([[0.91], [0.967], [0.924], [0.88], [0.955], [0.70], [0.5]])


# rliable 1.2.0 (`get_interval_estimates`, 50,000 resamples) in an environment of its own: value, low, high.
@pytest.mark.parametrize(
    ("scores", "statistic", "expected"),
    [
        (FIVE_BY_TWO, interquartile_mean, (0.63233333, 0.57833333, 0.6695)),
        (FIVE_BY_TWO, arithmetic_mean, (0.6096, 0.5595, 0.654)),
        (SEVEN, interquartile_mean, (0.8738, 0.698, 0.9446)),
        (SEVEN, arithmetic_mean, (0.83371429, 0.70628571, 0.934575)),
        (FIVE_BY_TWO[:3], interquartile_mean, (0.6385, 0.517, 0.68275)),
        (FIVE_BY_TWO[:3], arithmetic_mean, (0.60516667, 0.52416667, 0.6745)),
    ],
)
def test_as_rliable_has_it(scores, statistic, expected):
    assert statistic(scores.reshape(-1)) == pytest.approx(expected[0], abs=1e-8)
    assert stratified_interval(scores, statistic) == pytest.approx(expected[1:], abs=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11])
def test_the_interquartile_mean_is_a_trimmed_mean(count):
    scores = np.random.default_rng(count).normal(size=(3, count))
    expected = stats.trim_mean(scores, 0.25, axis=1)
    np.testing.assert_allclose(interquartile_mean(scores), expected, rtol=1e-14)
    assert interquartile_mean(np.array([0.0, 1.0, 2.0, 30.0, 400.0])) == 11.0


def exact_interval(scores, statistic):
    """The percentile interval of all equally likely resamples."""
    runs, tasks = scores.shape
    columns = [itertools.product(range(runs), repeat=runs) for _ in range(tasks)]
    values = [
        float(statistic(np.concatenate([scores[list(rows), task] for task, rows in enumerate(chosen)])))
        for chosen in itertools.product(*columns)
    ]
    return np.quantile(values, (0.025, 0.975), method="inverted_cdf")


@pytest.mark.parametrize("statistic", [arithmetic_mean, interquartile_mean])
@pytest.mark.parametrize("shape", [(2, 1), (3, 1), (3, 2), (4, 1)])
def test_the_bootstrap_is_the_enumeration_of_all_resamples(shape, statistic):
    scores = np.random.default_rng(sum(shape)).normal(size=shape)
    exact = exact_interval(scores, statistic)
    assert stratified_interval(scores, statistic) == pytest.approx(exact, abs=0.02 * np.ptp(scores))


def test_two_runs_give_their_range_and_tasks_are_drawn_apart():
    assert stratified_interval(np.array([[1.0], [2.0]]), arithmetic_mean) == (1.0, 2.0)
    # Each task's best run is the other's worst: drawn together, resamples would all have the mean 0.5.
    low, high = stratified_interval(np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]), arithmetic_mean)
    assert low < 0.3 and high > 0.7


def test_the_chunks_of_resamples_do_not_matter(monkeypatch):
    monkeypatch.setattr(statistics, "RUN_RESAMPLES", 2_000)
    whole = stratified_interval(SEVEN, arithmetic_mean)
    monkeypatch.setattr(statistics, "_CHUNK", 500)
    assert stratified_interval(SEVEN, arithmetic_mean) == whole


def test_students_interval_by_hand():
    # 1, 2, 4: mean 7/3, s^2 = 7/3, t(2) = 4.3026527.
    half = 4.3026527 * np.sqrt(7 / 3) / np.sqrt(3)
    assert student_interval(np.array([1.0, 2.0, 4.0])) == pytest.approx((7 / 3 - half, 7 / 3 + half), abs=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stratified_interval(np.ones((1, 3)), arithmetic_mean),
        lambda: stratified_interval(np.ones((3, 0)), arithmetic_mean),
        lambda: stratified_interval(np.ones(3), arithmetic_mean),
        lambda: stratified_interval(np.array([[1.0], [np.nan]]), arithmetic_mean),
        lambda: student_interval(np.ones(1)),
        lambda: student_interval(np.array([1.0, np.inf])),
    ],
)
def test_too_few_or_broken_scores_are_refused(call):
    with pytest.raises(ValueError, match=r"are needed|not finite"):
        call()


def test_a_band_leaves_out_what_is_missing():
    nan = np.nan
    curves = np.array([[1.0, 1.0, nan, nan], [2.0, 2.0, 3.0, nan], [6.0, nan, nan, nan]])
    mean, low, high = mean_band(curves)
    np.testing.assert_allclose(mean, [3.0, 1.5, 3.0, nan])
    np.testing.assert_allclose(low, [1.0, 1.0, nan, nan])
    np.testing.assert_allclose(high, [6.0, 2.0, nan, nan])
