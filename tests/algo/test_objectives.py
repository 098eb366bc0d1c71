"""Surrogates: the coefficient on grad log pi, and where clipping stops it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import errors
from rlvr.algo.aggregation import AGGREGATIONS
from rlvr.algo.objectives import SURROGATES, ObjectiveConfig, clip, reinforce

LENGTHS = np.array([2, 5, 1, 4])
GROUPS = np.array([0, 0, 1, 1])
ADVANTAGES = np.array([1.5, -0.5, 0.25, -2.0])
C = 5
BUDGET = 9
MASK = np.arange(C) < LENGTHS[:, None]
B = len(LENGTHS)
# The coefficient on grad log pi(y_it) at ratio one.
ON_POLICY = {
    "token_mean": ADVANTAGES / LENGTHS.sum(),
    "token_sum": ADVANTAGES,
    "seq_mean_token_mean": ADVANTAGES / (B * LENGTHS),
    "seq_mean_token_sum": ADVANTAGES / B,
    "seq_sum_norm": ADVANTAGES / (B * BUDGET),
    "prompt_mean": ADVANTAGES / (2 * np.array([7, 7, 5, 5])),
}


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_coefficients_on_policy(surrogate: str, aggregation: str) -> None:
    old = jnp.asarray(np.random.default_rng(0).normal(-2.0, 1.0, (B, C)), jnp.float32)
    advantages = jnp.asarray(np.repeat(ADVANTAGES[:, None], C, 1), jnp.float32)
    weights = np.where(MASK, AGGREGATIONS[aggregation](LENGTHS, GROUPS, BUDGET)[:, None], 0.0).astype(np.float32)

    def loss(logprobs: jax.Array) -> jax.Array:
        losses, _ = SURROGATES[surrogate](logprobs, old, advantages, ObjectiveConfig())
        return jnp.sum(losses * weights)

    expected = -np.where(MASK, ON_POLICY[aggregation][:, None], 0.0)
    np.testing.assert_allclose(jax.grad(loss)(old), expected, rtol=1e-5, atol=1e-8)


CONFIG = ObjectiveConfig(clip_low=0.2, clip_high=0.28)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "high", "low"),
    [
        (1.0, 2.0, -2.0, -2.0, 0, 0),
        (1.27, 2.0, -2.54, -2.54, 0, 0),  # between 1 + low and 1 + high: the sides are not swapped
        (1.3, 2.0, -2.56, 0.0, 1, 0),
        (0.75, 2.0, -1.5, -1.5, 0, 0),  # outside, but the pessimistic branch is the free one
        (0.75, -2.0, 1.6, 0.0, 0, 1),
        (0.81, -2.0, 1.62, 1.62, 0, 0),
        (1.3, -2.0, 2.6, 2.6, 0, 0),
        (1.3, 0.0, 0.0, 0.0, 0, 0),  # nothing to clip
    ],
)
def test_clip_by_hand(ratio: float, advantage: float, loss: float, gradient: float, high: int, low: int) -> None:
    old = jnp.full((1, 1), -1.5)
    logprobs = old + np.log(ratio).astype(np.float32)
    a = jnp.full((1, 1), advantage)
    value, indicators = clip(logprobs, old, a, CONFIG)
    np.testing.assert_allclose(value, [[loss]], rtol=1e-5, atol=1e-7)
    got = jax.grad(lambda x: clip(x, old, a, CONFIG)[0].sum())(logprobs)
    np.testing.assert_allclose(got, [[gradient]], rtol=1e-5, atol=1e-7)
    assert {name: int(x[0, 0]) for name, x in indicators.items()} == {"clip/high": high, "clip/low": low}


def test_clip_of_an_absurd_ratio_stays_finite() -> None:
    logprobs, old = jnp.array([[0.0, -800.0]]), jnp.array([[-800.0, 0.0]])
    for advantage in (1.0, -1.0):
        a = jnp.full((1, 2), advantage)
        value, gradient = jax.value_and_grad(lambda x, a=a: clip(x, old, a, CONFIG)[0].sum())(logprobs)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_reinforce_ignores_the_old_policy() -> None:
    logprobs = jnp.array([[-0.3, -2.0]])
    a = jnp.array([[2.0, -1.0]])
    value, indicators = reinforce(logprobs, jnp.full((1, 2), jnp.nan), a, CONFIG)
    np.testing.assert_allclose(value, [[0.6, -2.0]])
    assert indicators == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"surrogate": "clp"}, "objective.surrogate='clp'.*'clip'"),
        ({"advantage": "gae"}, "objective.advantage"),
        ({"aggregation": "mean"}, "objective.aggregation"),
        ({"kl": "k1", "kl_coef": 0.1}, "objective.kl='k1'"),
        ({"kl": "k3"}, "set both, or neither"),
        ({"kl_coef": 0.1}, "set both, or neither"),
        ({"clip_low": 1.5}, "objective.clip_low"),
        ({"clip_high": -0.1}, "objective.clip_high"),
        ({"std_ddof": 2}, "objective.std_ddof"),
        ({"entropy_coef": float("nan")}, "objective.entropy_coef"),
    ],
)
def test_config_names_the_field(fields: dict[str, object], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        ObjectiveConfig(**fields).validate()


def test_which_objectives_need_what() -> None:
    assert not ObjectiveConfig().needs_reference() and not ObjectiveConfig().needs_all_rows()
    in_reward = ObjectiveConfig(kl="k1_in_reward", kl_coef=0.1)
    assert in_reward.needs_reference() and not in_reward.needs_all_rows()
    assert ObjectiveConfig(kl="k2", kl_coef=0.1).needs_all_rows()
    for name in ("entropy_coef", "balance_coef", "z_coef"):
        assert ObjectiveConfig(**{name: 0.1}).needs_all_rows()
