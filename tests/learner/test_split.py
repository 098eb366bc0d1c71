"""Minibatches are whole groups, whatever number of groups a rollout has."""

import numpy as np
import pytest

from rlvr.learner.batch import Row
from rlvr.learner.learner import split_groups


@pytest.mark.parametrize(
    ("groups", "parts", "sizes"),
    [(4, 2, [2, 2]), (4, 1, [4]), (7, 2, [3, 4]), (5, 4, [1, 1, 1, 2]), (2, 4, [1, 1]), (1, 4, [1])],
)
def test_sizes(groups, parts, sizes):
    rows = [Row((1,), np.zeros(1), np.zeros(1), 0.0, i // 3) for i in range(3 * groups)]
    slices = split_groups(rows, parts)
    assert [len(rows[own]) for own in slices] == [3 * size for size in sizes]
    assert [row for own in slices for row in rows[own]] == rows


def test_the_two_sides_of_a_prompt_stay_together():
    rows = [Row((1,), np.zeros(1), np.zeros(1), 0.0, i // 2, borrowed=bool(i // 2 % 2)) for i in range(12)]
    assert [len(rows[own]) for own in split_groups(rows, 2)] == [4, 8]
