"""Statistics against hand-computed and enumerated numbers."""

import itertools
import math

import numpy as np
import pytest

from rlvr import statistics


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # By hand with z = 1.959964: z^2 = 3.841459; p = 0.5, n = 10: centre 0.5 and half-width
        # z sqrt(0.025 + 0.00960365) / 1.3841459 = 0.263405.
        (5, 10, 0.236595, 0.763405),
        # p = 0: [0, z^2 / (n + z^2)] = 3.841459 / 13.841459.
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662; 15 of 148 gives 0.0624 to 0.1605.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
    ],
)
def test_wilson_known_values(successes, n, low, high):
    assert statistics.wilson_interval(successes, n) == pytest.approx((low, high), abs=6e-5)


def test_wilson_bounds_solve_the_score_equation():
    """The bounds are where |p - bound| equals z standard errors under the bound: Wilson's definition."""
    for n, successes in [(7, 3), (500, 451), (40, 39)]:
        for bound in statistics.wilson_interval(successes, n, confidence=0.9):
            z = abs(successes / n - bound) / math.sqrt(bound * (1 - bound) / n)
            assert z == pytest.approx(1.6448536, abs=1e-6)


def test_wilson_exact_at_the_ends():
    for n in (1, 3, 10, 37, 12345):
        assert statistics.wilson_interval(0, n)[0] == 0.0
        assert statistics.wilson_interval(n, n)[1] == 1.0


@pytest.mark.parametrize(
    "arguments", [(0, 0), (-1, 5), (6, 5), (float("nan"), 5), (1, 5, 0.0), (1, 5, 1.0), (1, 5, 95)]
)
def test_wilson_refuses(arguments):
    with pytest.raises(ValueError, match="must be"):
        statistics.wilson_interval(*arguments)


def test_mean_interval_of_binary_scores_is_wilson():
    scores = np.array([1, 0, 1, 1, 0], np.float32)
    assert statistics.mean_interval(scores) == statistics.wilson_interval(3, 5)


def test_mean_interval_bootstrap():
    rng = np.random.default_rng(5)
    scores = rng.beta(2, 3, size=400)
    low, high = statistics.mean_interval(scores)
    assert (low, high) == statistics.mean_interval(scores)
    # 400 scores are plenty for the central limit theorem: the normal interval is the oracle.
    half = 1.96 * scores.std(ddof=1) / 20
    assert low == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(scores.mean() + half, abs=0.1 * half)
    # Narrower than Wilson's bound on the same mean, as wilson_interval's documentation promises.
    wide = statistics.wilson_interval(scores.sum(), 400)
    assert wide[0] < low and high < wide[1]


def test_mean_interval_covers():
    """The bootstrap interval holds the true mean about 95 times in 100."""
    rng = np.random.default_rng(0)
    bounds = [statistics.mean_interval(rng.uniform(size=60)) for _ in range(60)]
    assert sum(low <= 0.5 <= high for low, high in bounds) >= 51  # P(fewer | coverage 0.95) < 0.001


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "at least one"),
        ([[0.0, 1.0]], "one axis"),
        ([0.5, math.nan], "1 of 2 scores"),
        ([math.inf], "finite"),
    ],
)
def test_mean_interval_refuses(scores, message):
    with pytest.raises(ValueError, match=message):
        statistics.mean_interval(np.array(scores))


def test_pass_at_k_by_enumeration():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
                expected = sum(any(draw) for draw in draws) / len(draws)
                assert statistics.pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_stable_for_many_samples():
    n, c, k = 10_000, 3, 1000
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert statistics.pass_at_k(n, c, k) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("arguments", [(5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6), (0, 0, 1)])
def test_pass_at_k_refuses(arguments):
    with pytest.raises(ValueError, match="must be between"):
        statistics.pass_at_k(*arguments)
