"""The weight of a token in the loss, by hand for every mode: two groups of unequal lengths, one sequence empty."""

import numpy as np
import pytest

from rlvr.algo.aggregation import AGGREGATIONS

LENGTHS = np.array([2, 3, 0, 5, 1])
GROUPS = np.array([4, 4, 4, 9, 9])
BUDGET = 7
N = 4  # sequences that have tokens
HAND = {
    "token_mean": [1 / 11] * 5,
    "token_sum": [1.0] * 5,
    "seq_mean_token_mean": [1 / (N * 2), 1 / (N * 3), None, 1 / (N * 5), 1 / (N * 1)],
    "seq_mean_token_sum": [1 / N] * 5,
    "seq_sum_norm": [1 / (N * BUDGET)] * 5,
    "prompt_mean": [1 / (2 * 5), 1 / (2 * 5), None, 1 / (2 * 6), 1 / (2 * 6)],
}


def test_every_mode_has_its_hand_computed_row() -> None:
    assert HAND.keys() == AGGREGATIONS.keys()


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_by_hand(name: str) -> None:
    weights = AGGREGATIONS[name](LENGTHS, GROUPS, BUDGET)
    assert weights.shape == LENGTHS.shape and np.all(np.isfinite(weights))
    for i in np.flatnonzero(LENGTHS):
        np.testing.assert_allclose(weights[i], HAND[name][i], rtol=1e-12)


@pytest.mark.parametrize("name", ["token_mean", "seq_mean_token_mean", "prompt_mean"])
def test_means_of_a_constant_are_the_constant(name: str) -> None:
    np.testing.assert_allclose(np.sum(AGGREGATIONS[name](LENGTHS, GROUPS, BUDGET) * LENGTHS), 1.0)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_an_empty_sequence_and_the_order_change_nothing(name: str) -> None:
    keep = np.flatnonzero(LENGTHS)
    order = np.array([3, 0, 4, 2, 1])
    weights = AGGREGATIONS[name](LENGTHS, GROUPS, BUDGET)
    np.testing.assert_allclose(weights[keep], AGGREGATIONS[name](LENGTHS[keep], GROUPS[keep], BUDGET))
    np.testing.assert_allclose(weights[order], AGGREGATIONS[name](LENGTHS[order], GROUPS[order], BUDGET))


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_nothing_sampled_is_no_division_by_zero(name: str) -> None:
    assert np.all(np.isfinite(AGGREGATIONS[name](np.zeros(3, int), np.arange(3), BUDGET)))


def test_an_empty_group_is_not_a_prompt() -> None:
    weights = AGGREGATIONS["prompt_mean"](np.array([0, 0, 4]), np.array([1, 1, 2]), BUDGET)
    np.testing.assert_allclose(weights[2], 1 / 4)
