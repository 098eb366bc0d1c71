"""Advantages by hand, and the closed forms they must meet for binary rewards."""

import itertools

import numpy as np
import pytest

from rlvr.algo.advantages import ADVANTAGES, dr_grpo, grpo, rloo

G = 8


def full(rewards: np.ndarray) -> np.ndarray:
    return np.ones_like(rewards, bool)


def test_by_hand() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 3.0]])
    # mean 1, deviations 0 -1 -1 2, squares 6: sample variance 2, population variance 1.5
    np.testing.assert_allclose(
        grpo(rewards, full(rewards), std_ddof=1, epsilon=0.0), np.array([[0, -1, -1, 2]]) / np.sqrt(2.0)
    )
    np.testing.assert_allclose(
        grpo(rewards, full(rewards), std_ddof=0, epsilon=0.5), np.array([[0, -1, -1, 2]]) / (np.sqrt(1.5) + 0.5)
    )
    np.testing.assert_allclose(dr_grpo(rewards, full(rewards), std_ddof=1, epsilon=0.0), [[0, -1, -1, 2]])
    np.testing.assert_allclose(
        rloo(rewards, full(rewards), std_ddof=1, epsilon=0.0), np.array([[0, -1, -1, 2]]) * 4 / 3
    )


def test_rloo_is_the_reward_minus_the_mean_of_the_others() -> None:
    rewards = np.random.default_rng(0).normal(size=(5, G))
    others = (rewards.sum(1, keepdims=True) - rewards) / (G - 1)
    np.testing.assert_allclose(rloo(rewards, full(rewards), std_ddof=0, epsilon=0.0), rewards - others, atol=1e-12)


@pytest.mark.parametrize("right", range(1, G))
def test_closed_forms_of_binary_rewards(right: int) -> None:
    rewards = np.arange(G)[None] < right
    p = right / G
    a = grpo(rewards, full(rewards), std_ddof=0, epsilon=0.0)
    np.testing.assert_allclose(a[0, 0], np.sqrt((1 - p) / p))
    np.testing.assert_allclose(a[0, -1], -np.sqrt(p / (1 - p)))
    np.testing.assert_allclose(np.abs(a).mean(), 2 * np.sqrt(p * (1 - p)))
    np.testing.assert_allclose((a**2).mean(), 1.0)
    np.testing.assert_allclose(np.abs(dr_grpo(rewards, full(rewards), std_ddof=0, epsilon=0.0)).mean(), 2 * p * (1 - p))


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_weight_of_the_expected_gradient(p: float) -> None:
    """E[mean_i A_i score_i] = w(p) dp, exactly, by enumerating all groups: 1, 1 - 1/G, and GRPO's at G = 8."""
    groups = np.array(list(itertools.product([0.0, 1.0], repeat=G)))
    chance = np.prod(np.where(groups == 1, p, 1 - p), axis=1)
    score = (groups - p) / (p * (1 - p))  # d log probability / dp

    def weight(name: str) -> float:
        a = ADVANTAGES[name](groups, full(groups), std_ddof=0, epsilon=0.0)
        return float(np.sum(chance * (a * score).mean(axis=1)))

    np.testing.assert_allclose(weight("rloo"), 1.0, rtol=1e-10)
    np.testing.assert_allclose(weight("dr_grpo"), 1 - 1 / G, rtol=1e-10)
    np.testing.assert_allclose(weight("grpo"), {0.2: 2.107, 0.5: 1.856}[p], atol=5e-4)


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("size", [2, 3, 7, 8, 10, 64])
@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.0, -2.3])
def test_groups_without_spread_are_exactly_zero(name: str, size: int, value: float) -> None:
    # The mean of identical 0.1 is not 0.1 in float: dividing what is left by epsilon would be noise of size one.
    rewards = np.full((2, size), value, np.float32)
    a = ADVANTAGES[name](rewards, full(rewards), std_ddof=1, epsilon=0.0)
    assert np.all(a == 0.0) and a.dtype == np.float64


@pytest.mark.parametrize("name", ADVANTAGES)
def test_masked_samples_are_as_if_absent(name: str) -> None:
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=(6, G))
    valid = rng.random((6, G)) < 0.6
    valid[0] = False
    valid[1] = np.arange(G) == 3  # alone
    valid[2] = True
    poisoned = np.where(valid, rewards, np.nan)
    a = ADVANTAGES[name](poisoned, valid, std_ddof=1, epsilon=1e-6)
    assert np.all(a[~valid] == 0.0)
    assert np.all(a[:2] == 0.0)
    for row in range(2, 6):
        alone = rewards[row, valid[row]][None]
        np.testing.assert_allclose(
            a[row, valid[row]][None], ADVANTAGES[name](alone, full(alone), std_ddof=1, epsilon=1e-6), rtol=1e-12
        )


@pytest.mark.parametrize("name", ADVANTAGES)
def test_groups_do_not_mix_and_a_shift_changes_nothing(name: str) -> None:
    rewards = np.random.default_rng(2).normal(size=(3, G))
    a = ADVANTAGES[name](rewards, full(rewards), std_ddof=1, epsilon=1e-6)
    shifted = ADVANTAGES[name](rewards + np.array([[5.0], [-1.0], [0.0]]), full(rewards), std_ddof=1, epsilon=1e-6)
    np.testing.assert_allclose(a, shifted, atol=1e-12)
    np.testing.assert_allclose(a.sum(axis=1), 0.0, atol=1e-12)
