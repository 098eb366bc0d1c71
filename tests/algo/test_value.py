"""Advantages from values against sums in float64 and by hand, and the clipped loss by hand and by differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import errors
from rlvr.algo.aggregation import weigh_right
from rlvr.algo.value import ValueConfig, clipped_value_loss, estimate_advantages

RNG = np.random.default_rng(11)


def summed(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float, after: float) -> np.ndarray:
    """A_t = sum over l of (gamma lam)^l d_{t+l}, each term written out."""
    count, out = len(rewards), np.zeros(len(rewards))
    known = [*values, after]
    for t in range(count):
        for s in range(t, count):
            out[t] += (gamma * lam) ** (s - t) * (rewards[s] + gamma * known[s + 1] - known[s])
    return out


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (0.97, 0.0), (0.9, 1.0), (1.0, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_gae_is_the_sum_over_all_later_errors(gamma: float, lam: float, count: int) -> None:
    rewards, values, after = RNG.normal(size=count), RNG.normal(size=count), float(RNG.normal())
    got = estimate_advantages(rewards, values, gamma, lam, after)
    np.testing.assert_allclose(got, summed(rewards, values, gamma, lam, after), rtol=1e-12, atol=1e-14)
    if lam == 1.0:  # the returns are the rewards to come, whatever the values
        to_come = [sum(gamma ** (s - t) * rewards[s] for s in range(t, count)) for t in range(count)]
        ends = [x + gamma ** (count - t) * after for t, x in enumerate(to_come)]
        np.testing.assert_allclose(got + values, ends, rtol=1e-12, atol=1e-14)


def test_by_hand() -> None:
    """Values before each token; the reward is the last one's. d = (0.1, -0.3, 0.7)."""
    rewards, values = np.array([0.0, 0.0, 1.0]), np.array([0.5, 0.6, 0.3])
    third = 0.7
    second = -0.3 + 0.5 * third
    first = 0.1 + 0.5 * second
    np.testing.assert_allclose(estimate_advantages(rewards, values, 1.0, 0.5), [first, second, third])
    # Cut off, and worth 0.2 there: d = (0.1, -0.3, -0.1).
    cut = estimate_advantages(np.zeros(3), values, 1.0, 0.0, after=0.2)
    np.testing.assert_allclose(cut, [0.1, -0.3, -0.1])
    # Half as much a token later: d = (-0.2, -0.45, 0.7).
    np.testing.assert_allclose(estimate_advantages(rewards, values, 0.5, 0.0), [-0.2, -0.45, 0.7])


@pytest.mark.parametrize("mask", [[1, 0, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]])
def test_gaps_are_stepped_over_as_if_they_were_not_there(mask: list[int]) -> None:
    own = np.array(mask, bool)
    rewards, values = RNG.normal(size=7), RNG.normal(size=7)
    gapped = estimate_advantages(rewards, np.where(own, values, np.nan), 0.9, 0.8, 0.3, own)
    np.testing.assert_array_equal(gapped[own], estimate_advantages(rewards[own], values[own], 0.9, 0.8, 0.3))
    assert np.all(gapped[~own] == 0)


def test_lambda_grows_with_the_length() -> None:
    config = ValueConfig(length_alpha=0.05)
    assert [config.policy_lam(length) for length in (1, 20, 40, 200)] == [0.0, 0.0, 0.5, 0.9]
    assert ValueConfig(lam=0.7).policy_lam(40) == 0.7


@pytest.mark.parametrize(
    ("value", "before", "loss", "gradient", "clipped"),
    [
        (0.5, 0.5, 0.5 * 0.25, -0.5, 0),  # the return is 1
        (0.65, 0.5, 0.5 * 0.35**2, -0.35, 0),
        (0.9, 0.5, 0.5 * 0.3**2, 0.0, 1),  # nearer than the clip allows: nothing more to learn
        (0.1, 0.5, 0.5 * 0.9**2, -0.9, 0),  # further away than the clip: it is pulled back
        (2.0, 1.7, 0.5 * 1.0**2, 1.0, 0),
        (1.2, 1.7, 0.5 * 0.5**2, 0.0, 1),
    ],
)
def test_the_value_loss_by_hand(value: float, before: float, loss: float, gradient: float, clipped: int) -> None:
    def run(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses, stopped = clipped_value_loss(v, jnp.float32(before), jnp.float32(1.0), 0.2)
        return losses, stopped

    (got, stopped), slope = jax.value_and_grad(run, has_aux=True)(jnp.float32(value))
    np.testing.assert_allclose([got, slope], [loss, gradient], rtol=1e-5, atol=1e-7)
    assert int(stopped) == clipped
    free, stopped = clipped_value_loss(jnp.float32(value), jnp.float32(before), jnp.float32(1.0), 0.0)
    np.testing.assert_allclose(free, 0.5 * (value - 1) ** 2, rtol=1e-5)
    assert not stopped


def test_right_sequences_share_one_mean() -> None:
    lengths, right = np.array([2, 5, 3, 1]), np.array([True, False, True, False])
    np.testing.assert_allclose(weigh_right(lengths, right), [0.2, 0, 0.2, 0])
    np.testing.assert_array_equal(weigh_right(lengths, np.zeros(4, bool)), np.zeros(4))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("gamma", 1.1, "value.gamma=1.1 must be between 0.0 and 1.0"),
        ("lam", -0.1, "value.lam=-0.1"),
        ("lam_returns", 2.0, "value.lam_returns=2.0"),
        ("length_alpha", -1.0, "value.length_alpha=-1.0 must be at least 0"),
        ("clip", float("nan"), "value.clip=nan"),
        ("coef", 0.0, "value.coef=0.0 must be positive: without it the values learn nothing"),
    ],
)
def test_bad_values_are_named(field: str, value: float, words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        ValueConfig(**{field: value}).validate("value")
