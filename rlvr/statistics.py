"""Intervals and estimators of an evaluation. Needs numpy only; everything here is deterministic."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000  # bootstrap resamples: puts the Monte Carlo error of a bound well under the interval's width


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
