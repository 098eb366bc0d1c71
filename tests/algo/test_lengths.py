"""Rewards for length at their edges, in tokens."""

import numpy as np
import pytest

from rlvr import errors
from rlvr.algo.lengths import LengthConfig, penalise_linearly, punish_overlong, shape_cosine


def test_overlong_punishment_begins_after_the_buffers_start_and_is_whole_at_the_budget() -> None:
    lengths = np.array([0, 80, 81, 90, 99, 100, 200])
    np.testing.assert_allclose(
        punish_overlong(lengths, 100, 20), [0, 0, -1 / 20, -10 / 20, -19 / 20, -1, -1], rtol=1e-12
    )


def test_cosine_by_hand() -> None:
    config = LengthConfig(right_short=1.0, right_long=0.5, wrong_short=-0.5, wrong_long=0.0)
    lengths, right = np.array([0, 50, 100, 150]), np.ones(4, bool)
    np.testing.assert_allclose(shape_cosine(lengths, right, 100, config), [1, 0.75, 0.5, 0.5])  # it does not rise again
    np.testing.assert_allclose(shape_cosine(lengths, ~right, 100, config), [-0.5, -0.25, 0, 0])


def test_linear_penalty_by_hand() -> None:
    rewards, lengths = np.array([[1.0, 0.0, 9.0], [0.0, 0.0, 0.0]]), np.array([[10, 40, 99], [5, 6, 7]])
    valid = np.array([[True, True, False], [True, True, True]])
    # mean reward 1/2, longest 40; the sample that does not count keeps its reward, the group without success all
    want = [[1 - 0.2 * 0.5 * 0.25, -0.2 * 0.5, 9.0], [0, 0, 0]]
    np.testing.assert_allclose(penalise_linearly(rewards, lengths, valid, 0.2), want)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"overlong_buffer": -1}, "length.overlong_buffer=-1"),
        ({"linear": -0.1}, "length.linear=-0.1"),
        ({"repetition": 1e9}, "length.repetition="),
        ({"repetition_n": 0}, "length.repetition_n=0"),
        ({"wrong_long": float("nan")}, "length.wrong_long=nan"),
    ],
)
def test_config_names_the_field(fields: dict[str, float], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        LengthConfig(**fields).validate("length")
