"""The functions that take arrays of NumPy or of JAX give the same numbers, under jit too."""

import jax
import numpy as np
import pytest

from rlvr.algo.advantages import ADVANTAGES, BINARY, Groups, whiten
from rlvr.algo.aggregation import AGGREGATIONS
from rlvr.algo.lengths import LengthConfig, penalise_linearly, punish_overlong, shape_cosine
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.selection import EntropyBonus, adapt_entropy_bonus

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, 9, size=(6, 8))
BY_MODULE = {"rtol": 2e-5, "atol": 2e-6}


def check(function, *arrays):
    """Compares a function of NumPy arrays with the same of traced ones."""
    found = jax.jit(function)(*(a.astype(np.float32) if a.dtype == float else a for a in arrays))
    wanted = function(*arrays)
    assert isinstance(found, jax.Array) and not isinstance(wanted, jax.Array)
    np.testing.assert_allclose(found, wanted, **BY_MODULE)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages(name):
    rewards = RNG.normal(size=(6, 8)) ** 2
    rewards[0] = 0.7  # a mean of equal float32 is not exactly their value
    if name in BINARY:
        rewards = (rewards < 0.5).astype(float)
    valid = RNG.random((6, 8)) < 0.8
    config = ObjectiveConfig(pass_k=2)
    parts = np.stack([rewards, rewards[:, ::-1]])

    def estimate(rewards, valid, lengths, parts):
        return ADVANTAGES[name](Groups(rewards, valid, lengths, parts, (0.3, 0.7)), config)

    check(estimate, rewards, valid, LENGTHS, parts)
    if name not in ("reward", "gdpo", *BINARY):
        assert np.all(np.asarray(jax.jit(estimate)(rewards.astype(np.float32), valid, LENGTHS, parts))[0] == 0.0)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregation(name):
    lengths = LENGTHS.reshape(-1).copy()
    lengths[8:16] = 0
    groups = np.repeat(np.arange(6), 8)
    check(lambda lengths: AGGREGATIONS[name](lengths, groups, 16), lengths)


def test_lengths_and_whitening():
    config = LengthConfig()
    rewards, valid = RNG.random((6, 8)), RNG.random((6, 8)) < 0.8
    check(lambda lengths: punish_overlong(lengths, 8, 3), LENGTHS)
    check(lambda lengths, right: shape_cosine(lengths, right, 8, config), LENGTHS, valid)
    check(lambda *arrays: penalise_linearly(*arrays, 0.5), rewards, LENGTHS, valid)
    check(whiten, rewards.reshape(-1), (LENGTHS * valid).reshape(-1))
    check(whiten, np.full(5, 0.7), np.ones(5))


def test_the_entropy_bonus():
    config = ObjectiveConfig(entropy_target=0.3, entropy_step=0.25, entropy_max=0.6)
    for entropy in (0.1, 0.9):
        check(lambda x: adapt_entropy_bonus(EntropyBonus(0.1, True), x, config).coef, np.float64(entropy))
