"""Runs compared: each point's mean and interquartile mean with intervals, and its differences to the baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlvr import errors, statistics
from rlvr.grid.measures import History, Measure
from rlvr.grid.spec import Grid, Hypothesis, Point

Interval = tuple[float, float] | None
Histories = Mapping[str, Mapping[int, History]]  # point id -> seed -> steps, of the runs that are done


class Estimate(NamedTuple):
    """A value with its 95 % interval; None of it where fewer than two seeds are there."""

    value: float
    interval: Interval


@dataclasses.dataclass(frozen=True)
class Scores:
    """A measure at one point.

    Attributes:
        seeds: of the runs that are done and have it, ascending.
        values: [seeds, tasks].
        missing: seeds of runs that are done and lack a value.
    """

    seeds: tuple[int, ...]
    values: np.ndarray
    missing: tuple[int, ...]

    def by_seed(self) -> dict[int, float]:
        """Returns {seed: the mean over tasks}."""
        return {seed: float(values.mean()) for seed, values in zip(self.seeds, self.values, strict=True)}


@dataclasses.dataclass(frozen=True)
class Line:
    """A measure at one point, compared.

    Attributes:
        mean, iqm: over all seeds and tasks, with stratified bootstrap intervals; None if no run has the measure.
        difference: to the baseline, the mean over the seeds that both have, with Student's interval; None for the
            baseline itself and where no seed is common.
        pairs: how many seeds both have.
    """

    point: Point
    scores: Scores
    mean: Estimate | None
    iqm: Estimate | None
    difference: Estimate | None
    pairs: int


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the runs say of a hypothesis: "supported", "contradicted" or "undecided", and why if undecided."""

    hypothesis: Hypothesis
    answer: str
    effect: Estimate | None
    seeds: int
    reason: str


def collect_scores(point: Point, measure: Measure, histories: Histories) -> Scores:
    """Returns a point's scores.

    Raises:
        WorkdirError: two seeds of the point were evaluated on different tasks.
    """
    found = {seed: history.measure(measure) for seed, history in histories.get(point.id, {}).items()}
    whole = {seed: values for seed, values in sorted(found.items()) if values and np.isfinite([*values.values()]).all()}
    names = {tuple(values) for values in whole.values()}
    if len(names) > 1:
        raise errors.WorkdirError(f"{point.label}: {measure.metric} is of different tasks in different seeds: {names}")
    tasks = len(next(iter(names), ()))
    values = np.array([[*values.values()] for values in whole.values()], float).reshape(len(whole), tasks)
    return Scores(tuple(whole), values, tuple(sorted(found.keys() - whole.keys())))


def compare(grid: Grid, measure: Measure, histories: Histories) -> list[Line]:
    """Returns a line for each point, in the order of the grid."""
    baseline = next(point for point in grid.points if point.label == grid.baseline)
    scores_there = collect_scores(baseline, measure, histories)
    lines = []
    for point in grid.points:
        scores = collect_scores(point, measure, histories)
        differences = [] if point is baseline else _paired(scores, scores_there)
        mean = _estimate(scores.values, statistics.arithmetic_mean)
        iqm = _estimate(scores.values, statistics.interquartile_mean)
        lines.append(Line(point, scores, mean, iqm, _mean_effect(differences), len(differences)))
    return lines


def judge(hypothesis: Hypothesis, grid: Grid, histories: Histories) -> Verdict:
    """Returns the verdict on a hypothesis.

    The interval is Student's, of the mean over seeds of the effect (averaged over tasks first): of two to five seeds
    the percentile bootstrap is much too narrow. Let e be the effect in the claimed direction: the claim is supported if
    the whole interval is above `smallest_effect`, contradicted if none of it is, and undecided otherwise or with fewer
    than two seeds. "near" is supported if all of the interval is within the smallest effect of 0, contradicted if none.
    """
    by_label = {point.label: point for point in grid.points}
    own = collect_scores(by_label[hypothesis.point], hypothesis.measure, histories)
    if hypothesis.threshold is not None:
        effects = [value - hypothesis.threshold for value in own.by_seed().values()]
    else:
        effects = _paired(own, collect_scores(by_label[hypothesis.other], hypothesis.measure, histories))
    effect = _mean_effect(effects)
    if effect is None or effect.interval is None:
        reason = "no finished run has it" if not effects else "one seed has no interval: at least two are needed"
        return Verdict(hypothesis, "undecided", effect, len(effects), reason)
    low, high = effect.interval
    if low == high != 0.0:
        reason = "every seed has the same effect: no spread to judge it by"
        return Verdict(hypothesis, "undecided", effect, len(effects), reason)
    answer = _answer(hypothesis, low, high)
    reason = "the interval holds effects on both sides" if answer == "undecided" else ""
    return Verdict(hypothesis, answer, effect, len(effects), reason)


def _answer(hypothesis: Hypothesis, low: float, high: float) -> str:
    """Returns what an interval of the effect says."""
    least = hypothesis.smallest_effect
    if hypothesis.direction == "near":
        supported, contradicted = -least <= low and high <= least, low > least or high < -least
    else:
        if hypothesis.direction == "below":
            low, high = -high, -low
        supported, contradicted = low > least, high <= least
    return "supported" if supported else "contradicted" if contradicted else "undecided"


def _paired(own: Scores, other: Scores) -> list[float]:
    """Returns own less other of the seeds that both have."""
    mine, theirs = own.by_seed(), other.by_seed()
    return [mine[seed] - theirs[seed] for seed in mine if seed in theirs]


def _estimate(values: np.ndarray, statistic: statistics.Statistic) -> Estimate | None:
    if not len(values):
        return None
    interval = statistics.stratified_interval(values, statistic) if len(values) > 1 else None
    return Estimate(float(statistic(values.reshape(-1))), interval)


def _mean_effect(effects: Sequence[float]) -> Estimate | None:
    if not effects:
        return None
    interval = statistics.student_interval(np.array(effects)) if len(effects) > 1 else None
    return Estimate(float(np.mean(effects)), interval)
