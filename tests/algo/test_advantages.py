"""Advantages by hand, and the closed forms they must meet for binary rewards."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from rlvr import errors
from rlvr.algo.advantages import ADVANTAGES, BINARY, COMPARING, NON_NEGATIVE, Groups, whiten
from rlvr.algo.objectives import ObjectiveConfig

G = 8


def estimate(name: str, rewards: Any, valid: Any = None, lengths: Any = None, **fields: Any) -> np.ndarray:
    """Runs an estimator; epsilon is 0 unless given, and "gdpo" has the rewards as its only part."""
    rewards = np.asarray(rewards)
    valid = np.ones(rewards.shape, bool) if valid is None else valid
    lengths = np.ones(rewards.shape, int) if lengths is None else lengths
    groups = Groups(rewards, valid, lengths, rewards[None], (1.0,))
    return ADVANTAGES[name](groups, ObjectiveConfig(**{"epsilon": 0.0, **fields}))


def test_by_hand() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 3.0]])
    # mean 1, deviations 0 -1 -1 2, squares 6: sample variance 2, population variance 1.5
    away = np.array([[0.0, -1.0, -1.0, 2.0]])
    np.testing.assert_allclose(estimate("grpo", rewards), away / np.sqrt(2.0))
    np.testing.assert_allclose(estimate("grpo", rewards, std_ddof=0, epsilon=0.5), away / (np.sqrt(1.5) + 0.5))
    np.testing.assert_allclose(estimate("dr_grpo", rewards), away)
    np.testing.assert_allclose(estimate("rloo", rewards), away * 4 / 3)
    np.testing.assert_allclose(estimate("reward", rewards), rewards)
    np.testing.assert_allclose(estimate("maxrl", rewards, epsilon=0.5), away / 1.5)
    np.testing.assert_allclose(estimate("best_of_group", rewards), [[0, 0, 0, 2]])
    # lengths 1 2 3 4: baseline (1 + 12) / 10
    np.testing.assert_allclose(estimate("opo", rewards, lengths=np.array([[1, 2, 3, 4]])), rewards - 1.3)


def test_rloo_is_the_reward_minus_the_mean_of_the_others() -> None:
    rewards = np.random.default_rng(0).normal(size=(5, G))
    others = (rewards.sum(1, keepdims=True) - rewards) / (G - 1)
    np.testing.assert_allclose(estimate("rloo", rewards), rewards - others, atol=1e-12)


@pytest.mark.parametrize("right", range(1, G))
def test_closed_forms_of_binary_rewards(right: int) -> None:
    rewards = np.arange(G)[None] < right
    p = right / G
    a = estimate("grpo", rewards, std_ddof=0)
    np.testing.assert_allclose(a[0, 0], np.sqrt((1 - p) / p))
    np.testing.assert_allclose(a[0, -1], -np.sqrt(p / (1 - p)))
    np.testing.assert_allclose(np.abs(a).mean(), 2 * np.sqrt(p * (1 - p)))
    np.testing.assert_allclose((a**2).mean(), 1.0)
    np.testing.assert_allclose(np.abs(estimate("dr_grpo", rewards)).mean(), 2 * p * (1 - p))


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_weight_of_the_expected_gradient(p: float) -> None:
    """E[mean_i A_i score_i] = w(p) dp, exactly, by enumerating all groups of 8."""
    rewards = np.array(list(itertools.product([0.0, 1.0], repeat=G)))
    chance = np.prod(np.where(rewards == 1, p, 1 - p), axis=1)
    score = (rewards - p) / (p * (1 - p))  # d log probability / dp

    def weight(name: str, **fields: Any) -> float:
        return float(np.sum(chance * (estimate(name, rewards, **fields) * score).mean(axis=1)))

    q = 1 - p
    np.testing.assert_allclose(weight("reward"), 1.0, rtol=1e-10)
    np.testing.assert_allclose(weight("rloo"), 1.0, rtol=1e-10)
    np.testing.assert_allclose(weight("dr_grpo"), 1 - 1 / G, rtol=1e-10)
    np.testing.assert_allclose(weight("opo"), 1 - 1 / G, rtol=1e-10)  # of equal lengths
    np.testing.assert_allclose(weight("maxrl"), (1 - q ** (G - 1)) / p, rtol=1e-10)  # of order G - 1
    for k in (1, 2, 5, 8):
        np.testing.assert_allclose(weight("pkpo", pass_k=k), k * q ** (k - 1), rtol=1e-10)
    if p < 0.9:
        np.testing.assert_allclose(weight("grpo", std_ddof=0), {0.2: 2.107, 0.5: 1.856}[p], atol=5e-4)


@pytest.mark.parametrize(("n", "right", "k"), [(6, 2, 3), (5, 1, 2), (5, 4, 3), (4, 2, 1), (6, 5, 2)])
def test_pass_at_k_is_the_mean_over_all_subsets(n: int, right: int, k: int) -> None:
    rewards = (np.arange(n) < right).astype(float)
    subsets = list(itertools.combinations(range(n), k))
    best = np.array([rewards[list(s)].max() for s in subsets])
    assert len(subsets) == math.comb(n, k)
    standard = (best - best.mean()) / best.std() if best.std() > 0 else np.zeros(len(best))
    want = [np.mean([a for a, s in zip(standard, subsets, strict=True) if i in s]) for i in range(n)]
    got = estimate("pass_at_k", rewards[None], pass_k=k)[0]
    np.testing.assert_allclose(got, want, atol=1e-12)
    np.testing.assert_allclose(got.sum(), 0.0, atol=1e-12)


def test_gdpo_adds_what_each_reward_says_alone() -> None:
    parts = np.array([[[1.0, 0.0, 0.0, 1.0]], [[0.0, 0.0, 8.0, 0.0]], [[0.1, 0.1, 0.1, 0.1]]])
    groups = Groups(parts.sum(0), np.ones((1, 4), bool), np.ones((1, 4), int), parts, (2.0, 1.0, 5.0))
    config = ObjectiveConfig(epsilon=0.0)
    want = 2 * estimate("grpo", parts[0]) + estimate("grpo", parts[1])  # the third is constant: exactly nothing
    np.testing.assert_allclose(ADVANTAGES["gdpo"](groups, config), want, rtol=1e-12)
    summed = estimate("grpo", np.tensordot([2.0, 1.0, 5.0], parts, 1))
    assert np.max(np.abs(want - summed)) > 0.3  # and not the normalised sum


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("size", [2, 3, 7, 8, 10, 64])
@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.0, -2.3])
def test_groups_without_spread_are_exactly_zero(name: str, size: int, value: float) -> None:
    # The mean of identical 0.1 is not 0.1 in float: dividing what is left by epsilon would be noise of size one.
    if name == "reward" or (name in NON_NEGATIVE and value < 0) or (name in BINARY and value != 1):
        return
    rewards = np.full((2, size), value, np.float32)
    lengths = np.random.default_rng(0).integers(1, 99, size=rewards.shape)
    a = estimate(name, rewards, lengths=lengths, pass_k=2)
    assert np.all(a == 0.0) and a.dtype == np.float64


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_group_of_one_says_nothing(name: str, value: float) -> None:
    np.testing.assert_array_equal(estimate(name, [[value]], pass_k=1, epsilon=1e-6), [[0.0]])
    alone = np.array([[False, True, False]])
    np.testing.assert_array_equal(estimate(name, [[1.0 - value, value, value]], alone, pass_k=1), np.zeros((1, 3)))


@pytest.mark.parametrize("name", ADVANTAGES)
def test_masked_samples_are_as_if_absent(name: str) -> None:
    rng = np.random.default_rng(1)
    rewards = (rng.random((6, G)) < 0.5).astype(float) if name in BINARY else rng.random(size=(6, G))
    lengths = rng.integers(1, 9, size=(6, G))
    valid = rng.random((6, G)) < 0.6
    valid[0] = False
    valid[1] = np.arange(G) == 3  # alone
    valid[2] = True
    poisoned = np.where(valid, rewards, np.nan)
    a = estimate(name, poisoned, valid, lengths, pass_k=2)
    assert np.all(a[~valid] == 0.0)
    if name in COMPARING:
        assert np.all(a[:2] == 0.0)
    for row in range(2, 6):
        own = valid[row]
        alone = estimate(name, rewards[row, own][None], lengths=lengths[row, own][None], pass_k=2)
        np.testing.assert_allclose(a[row, own][None], alone, rtol=1e-12)


@pytest.mark.parametrize("name", [n for n in COMPARING if n not in NON_NEGATIVE])
def test_groups_do_not_mix_and_a_shift_changes_nothing(name: str) -> None:
    rewards = np.random.default_rng(2).normal(size=(3, G))
    a = estimate(name, rewards)
    np.testing.assert_allclose(a, estimate(name, rewards + np.array([[5.0], [-1.0], [0.0]])), atol=1e-12)
    if name != "best_of_group":
        np.testing.assert_allclose(a.sum(axis=1), 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "rewards", "words"),
    [
        ("maxrl", [[0.0, -1.0]], "maxrl.*rewards of at least 0; the step's go from -1 to 0"),
        ("pass_at_k", [[0.0, 0.5]], "pass_at_k.*rewards 0 and 1; the step's go from 0 to 0.5"),
        ("pkpo", [[1.0, 2.0]], "pkpo.*rewards 0 and 1"),
    ],
)
def test_rewards_that_an_estimator_is_not_for(name: str, rewards: Any, words: str) -> None:
    with pytest.raises(errors.DataError, match=words):
        estimate(name, rewards)
    estimate(name, rewards, np.zeros((1, 2), bool))  # of what does not count nothing is asked


def test_whitening() -> None:
    values = np.array([1.0, 2.0, 6.0, 100.0])
    # by samples: mean 3, variance (4 + 1 + 9) / 3; by tokens 1 1 4: mean 4.5, variance (12.25 + 6.25 + 9) / 6
    np.testing.assert_allclose(whiten(values, np.array([1, 1, 1, 0])), np.array([-2, -1, 3, 0]) / np.sqrt(14 / 3))
    np.testing.assert_allclose(
        whiten(values, np.array([1, 1, 4, 0])), np.array([-3.5, -2.5, 1.5, 0]) / np.sqrt(27.5 / 6)
    )
    np.testing.assert_array_equal(whiten(np.full(7, 0.1), np.ones(7)), np.zeros(7))
    np.testing.assert_array_equal(whiten(values, np.zeros(4)), np.zeros(4))
