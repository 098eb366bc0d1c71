"""Intervals and estimators of an evaluation and of several runs. Everything here is deterministic; no jax."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from scipy.stats import t as student

Statistic = Callable[[np.ndarray], np.ndarray]  # [..., n] -> [...]

RESAMPLES = 2000  # bootstrap resamples: puts the Monte Carlo error of a bound well under the interval's width
RUN_RESAMPLES = 50_000  # of a few runs, as rliable does: few scores, so the many resamples cost little
_CHUNK = 2_000_000  # resampled scores held at a time


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the score interval of a proportion (E. B. Wilson, 1927, JASA 22:209).

    With p = successes / n and z the normal quantile of (1 + confidence) / 2:

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Unlike the normal interval it stays in [0, 1], and has a width at p = 0 and p = 1. `successes` may be a
    sum of scores in [0, 1]: their variance is at most p (1 - p), so the interval is then too wide, never too
    narrow (`mean_interval` is the tighter choice where the single scores are known).

    Args:
        successes: number of successes, in [0, n].
        n: number of trials, at least 1.
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    if not 0 <= successes <= n:
        raise ValueError(f"successes={successes} must be between 0 and n={n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must be between 0 and 1, both excluded")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At p = 0 and p = 1 the bound is exactly 0 and 1; rounding must not move it past them, or off them.
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + half) / scale)
    return low, high


def mean_interval(scores: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Returns an interval of the mean of independent scores.

    Scores that are all 0 or 1 get the Wilson interval; any others a percentile bootstrap (Efron, 1979) of
    `RESAMPLES` resamples with a fixed seed, so that the same scores always give the same interval. Equal
    fractional scores give an interval without width: the bootstrap sees no spread.

    Args:
        scores: [n] finite numbers, n at least 1.
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: no scores, more than one axis, a score that is not finite, or a bad confidence.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"scores of shape {scores.shape}: one axis with at least one score is needed")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite")
    if np.isin(scores, (0.0, 1.0)).all():
        return wilson_interval(float(scores.sum()), scores.size, confidence)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must be between 0 and 1, both excluded")
    rng = np.random.default_rng(0)
    # One resample at a time: RESAMPLES x n indices at once would be 160 MB for 10,000 scores.
    means = [scores[rng.integers(scores.size, size=scores.size)].mean() for _ in range(RESAMPLES)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Returns the unbiased estimate of the chance that at least one of k samples is correct.

    1 - C(n - c, k) / C(n, k), computed as 1 - prod_{i = n-c+1..n} (1 - k / i), which does not overflow
    (Chen et al., 2021, arXiv:2107.03374, section 2.1).

    Args:
        n: samples drawn, at least 1.
        c: how many of them are correct, in [0, n].
        k: in [1, n].

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 <= c <= n:
        raise ValueError(f"c={c} must be between 0 and n={n}")
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must be between 1 and n={n}")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Returns the mean of the middle half over the last axis (Agarwal et al., 2021, arXiv:2108.13264).

    floor(n / 4) scores are left out at either end, as `scipy.stats.trim_mean` (which rliable calls) does: with fewer
    than four scores it is the mean.
    """
    cut = scores.shape[-1] // 4
    return np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut].mean(axis=-1)


def arithmetic_mean(scores: np.ndarray) -> np.ndarray:
    """Returns the mean over the last axis."""
    return scores.mean(axis=-1)


def stratified_interval(scores: np.ndarray, statistic: Statistic, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the percentile interval of a statistic of runs by the stratified bootstrap (2108.13264, section 4.1).

    In every resample each task draws its own runs, with replacement; the tasks stay. `RUN_RESAMPLES` resamples with a
    fixed seed. Of very few runs the interval is too narrow: of two it is at most the range of the two.

    Args:
        scores: [runs, tasks] finite numbers, at least two runs.
        statistic: sees the scores of all runs and tasks in one axis.

    Raises:
        ValueError: fewer than two runs, no tasks, or a score that is not finite.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or scores.shape[0] < 2 or scores.shape[1] < 1:
        raise ValueError(f"scores of shape {scores.shape}: [runs, tasks] with at least two runs are needed")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite")
    runs, tasks = scores.shape
    rng = np.random.default_rng(0)
    values: list[np.ndarray] = []
    for first in range(0, RUN_RESAMPLES, step := max(_CHUNK // scores.size, 1)):
        count = min(step, RUN_RESAMPLES - first)
        drawn = rng.integers(runs, size=(count, runs, tasks))
        values.append(statistic(scores[drawn, np.arange(tasks)].reshape(count, -1)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(values), (tail, 1 - tail))
    return float(low), float(high)


def student_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Returns Student's interval of the mean of independent values: mean -+ t(n - 1) s / sqrt(n).

    Args:
        values: [n] finite numbers, n at least 2; of paired runs, their differences.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
        raise ValueError(f"values={values}: at least two finite numbers are needed")
    half = student.ppf((1 + confidence) / 2, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size)
    return float(values.mean() - half), float(values.mean() + half)


def mean_band(curves: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (mean, low, high), each [n], of several runs' curves by the bootstrap over runs.

    Runs are drawn whole, `RESAMPLES` times with a fixed seed. A value that a run lacks (NaN) is left out of the means
    at its place; where no run has one, and in the bounds where a single run has one, the result is NaN.

    Args:
        curves: [runs, n].
    """
    known = np.isfinite(curves)
    filled = np.where(known, curves, 0.0)
    drawn = np.random.default_rng(0).integers(len(curves), size=(RESAMPLES, len(curves)))
    # How often each run was drawn, as a matrix: resampled sums are then products.
    times = np.zeros((RESAMPLES, len(curves)))
    np.add.at(times, (np.arange(RESAMPLES)[:, None], drawn), 1.0)
    counts = times @ known
    resampled = np.where(counts > 0, times @ filled / np.maximum(counts, 1), np.nan)
    total = known.sum(axis=0)
    mean = np.where(total > 0, filled.sum(axis=0) / np.maximum(total, 1), np.nan)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    enough = total > 1
    if enough.any():
        tail = (1 - confidence) / 2
        low[enough], high[enough] = np.nanquantile(resampled[:, enough], (tail, 1 - tail), axis=0)
    return mean, low, high
