"""Groups are told apart by what is right in them, masked samples aside."""

import numpy as np

from rlvr.algo.filters import KINDS, sort_groups


def test_kinds_by_hand():
    right = np.array([[1, 0, 0], [1, 1, 1], [0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1], [1, 1, 1]], bool)
    valid = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 0, 0]], bool)
    kinds = sort_groups(right, valid)
    assert kinds == ["mixed", "all_right", "all_wrong", "all_right", "all_wrong", "mixed", "unscorable"]
    assert set(kinds) == set(KINDS)
