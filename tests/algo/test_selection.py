"""Which tokens are treated apart, and the adaptive entropy bonus."""

import numpy as np
import pytest

from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.selection import (
    EntropyBonus,
    SelectionConfig,
    adapt_entropy_bonus,
    draw,
    select_high_covariance,
    select_high_entropy,
    select_small_moment,
)

RNG = np.random.default_rng(0)
LENGTHS = (3, 50, 1, 200)
LOGPROBS = [-RNG.exponential(1.5, n) for n in LENGTHS]
ENTROPIES = [RNG.random(n) for n in LENGTHS]
ADVANTAGES = [np.full(n, a) for n, a in zip(LENGTHS, (1.0, -0.5, 2.0, -1.0), strict=True)]
DRAWS = [RNG.random(n) for n in LENGTHS]
N = sum(LENGTHS)


def test_the_top_share_of_all_tokens_keeps_its_gradient() -> None:
    config = ObjectiveConfig(selection=SelectionConfig(top_entropy=0.2))
    marks = select_high_entropy(ENTROPIES, config)
    assert [len(m) for m in marks] == list(LENGTHS)
    chosen, values = np.concatenate(marks), np.concatenate(ENTROPIES)
    assert abs(chosen.sum() - 0.2 * N) <= 1
    assert values[chosen].min() > values[~chosen].max()
    assert all(np.all(m) for m in select_high_entropy([np.zeros(4)], config))  # ties are all kept


def test_aspo_widens_above_the_quantile() -> None:
    config = ObjectiveConfig(surrogate="aspo", selection=SelectionConfig(entropy_quantile=0.5))
    (marks,) = select_high_entropy([np.array([0.1, 0.2, 0.3, 0.4, 0.5])], config)
    np.testing.assert_array_equal(marks, [0, 0, 0, 1, 1])  # the quantile itself, 0.3, is not above it


def covariance() -> np.ndarray:
    a, x = np.concatenate(ADVANTAGES), np.concatenate(LOGPROBS)
    return (a - a.mean()) * (x - x.mean())


@pytest.mark.parametrize("share", [1e-6, 0.1])
def test_kl_cov_takes_the_largest(share: float) -> None:
    config = ObjectiveConfig(selection=SelectionConfig(covariance="kl_cov", share=share))
    chosen = np.concatenate(select_high_covariance(LOGPROBS, LOGPROBS, ADVANTAGES, DRAWS, config))
    assert chosen.sum() == max(int(share * N), 1)
    assert covariance()[chosen].min() > covariance()[~chosen].max()


def test_clip_cov_draws_from_the_candidates() -> None:
    own = SelectionConfig(covariance="clip_cov", share=0.03, low=0.2, high=0.9)
    config = ObjectiveConfig(selection=own)
    old = [x + RNG.normal(0, 0.2, len(x)) for x in LOGPROBS]
    a, ratio = np.concatenate(ADVANTAGES), np.exp(np.concatenate(LOGPROBS) - np.concatenate(old))
    clipped = ((a > 0) & (ratio > 1.2)) | ((a < 0) & (ratio < 0.8))
    candidates = (covariance() > 0.2) & (covariance() < 0.9) & ~clipped
    assert candidates.sum() > 3 * int(0.03 * N) and np.any(clipped & (covariance() > 0.2) & (covariance() < 0.9))
    chosen = np.concatenate(select_high_covariance(LOGPROBS, old, ADVANTAGES, DRAWS, config))
    assert chosen.sum() == int(0.03 * N) and not np.any(chosen & ~candidates)
    others = [RNG.random(n) for n in LENGTHS]
    again = np.concatenate(select_high_covariance(LOGPROBS, old, ADVANTAGES, others, config))
    assert np.any(again != chosen)
    # Another order of the sequences: the same tokens.
    order = (2, 0, 3, 1)
    shuffled = select_high_covariance(*([x[i] for i in order] for x in (LOGPROBS, old, ADVANTAGES, DRAWS)), config)
    back = np.concatenate([shuffled[order.index(i)] for i in range(4)])
    np.testing.assert_array_equal(back, chosen)


@pytest.mark.parametrize(("threshold", "kept"), [(0.02, 2), (0.1, 3), (0.12, 4), (10.0, 5), (1e-9, 1)])
def test_the_least_moved_tokens_are_kept(threshold: float, kept: int) -> None:
    """Squares 0.01, 0.01, 0.25, 0.16, 4: means of the smallest 0.01, 0.01, 0.06, 0.1075, 0.886."""
    config = ObjectiveConfig(selection=SelectionConfig(second_moment=threshold))
    rollout = [np.array([-1.0, -2.0]), np.array([-1.0, -0.5, -4.0])]
    now = [rollout[0] + [0.1, 0.5], rollout[1] + [-0.11, 0.4, 2.0]]
    marks = np.concatenate(select_small_moment(now, rollout, config))
    np.testing.assert_array_equal(marks, (np.array([0, 3, 1, 2, 4]) < kept))


def test_tokens_moved_alike_are_kept_alike() -> None:
    config = ObjectiveConfig(selection=SelectionConfig(second_moment=0.02))
    (alike,) = select_small_moment([np.array([0.25, 0.25, 0.0])], [np.zeros(3)], config)
    np.testing.assert_array_equal(alike, [0, 0, 1])  # with one of them the mean would be 0.031, with both 0.042
    (all_alike,) = select_small_moment([np.full(3, 0.5)], [np.zeros(3)], config)
    np.testing.assert_array_equal(all_alike, [1, 1, 1])


def test_draws_depend_on_the_content_alone() -> None:
    parts = np.array([1, 2, 3]), np.array([0.5], np.float32)
    first = draw(*parts, count=5)
    np.testing.assert_array_equal(first, draw(*(p.copy() for p in parts), count=5))
    assert np.all((first >= 0) & (first < 1)) and len(set(first)) == 5
    for other in ((np.array([1, 2, 4]), parts[1]), (parts[0], np.array([0.25], np.float32))):
        assert np.all(draw(*other, count=5) != first)


def test_the_entropy_bonus_follows_its_target() -> None:
    config = ObjectiveConfig(entropy_target=0.3, entropy_step=0.25, entropy_max=0.6)
    bonus = EntropyBonus(0.1, True)
    seen = []
    for entropy in (0.3, 0.2, 0.1, 0.31, 0.9, 0.9, 0.2):
        bonus = adapt_entropy_bonus(bonus, entropy, config)
        seen.append((round(bonus.coef, 6), bonus.active))
    assert seen == [
        (0.35, True),
        (0.6, True),  # and not beyond entropy_max
        (0.6, True),
        (0.35, False),
        (0.1, False),
        (0.0, False),
        (0.25, True),
    ]
