"""Schedules, clipping, and weight decay on matrices only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlvr import errors
from rlvr.learner.optimizer import OptimizerConfig, make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("decay", "after"),
    [
        ("constant", lambda x: 1.0),
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: 0.5 * (1 + np.cos(np.pi * x))),
    ],
)
@pytest.mark.parametrize("warmup", [0, 4])
def test_schedule(decay: str, after: object, warmup: int) -> None:
    schedule = make_schedule(OptimizerConfig(learning_rate=0.3, warmup_steps=warmup, decay=decay), steps=14)
    for step in range(warmup):  # no step is wasted at a rate of zero
        np.testing.assert_allclose(schedule(step), 0.3 * (step + 1) / (warmup + 1), rtol=1e-5)
    for step in range(warmup, 15):
        expected = 0.3 * after((step - warmup) / (14 - warmup))
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-8)


def step_of(config: OptimizerConfig, gradients: object, params: object) -> dict[str, jax.Array]:
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return optax.apply_updates(params, updates)


def test_weight_decay_shrinks_matrices_only() -> None:
    params = {"norm": jnp.full(3, 2.0), "matrix": jnp.full((2, 3), 2.0), "experts": jnp.full((2, 2, 3), 2.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    out = step_of(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), zeros, params)
    np.testing.assert_array_equal(out["norm"], params["norm"])
    for name in ("matrix", "experts"):
        np.testing.assert_allclose(out[name], 2.0 * (1 - 0.1 * 0.5), rtol=1e-6)


def test_clipping_is_by_the_norm_of_all_gradients_together() -> None:
    params = {"a": jnp.zeros(1), "b": jnp.zeros((1, 1))}
    gradients = {"a": jnp.full(1, 3.0), "b": jnp.full((1, 1), 4.0)}  # norm 5, clipped to 1: 0.6 and 0.8
    config = OptimizerConfig(learning_rate=1.0, b1=0.0, b2=0.0, epsilon=1.0, max_grad_norm=1.0)
    out = step_of(config, gradients, params)
    np.testing.assert_allclose(out["a"], -0.6 / 1.6, rtol=1e-6)
    np.testing.assert_allclose(out["b"], -0.8 / 1.8, rtol=1e-6)
    np.testing.assert_allclose(
        step_of(OptimizerConfig(learning_rate=1.0, b1=0.0, b2=0.0, epsilon=1.0, max_grad_norm=6.0), gradients, params)[
            "a"
        ],
        -3.0 / 4.0,
        rtol=1e-6,
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_gradient_touches_nothing(bad: float) -> None:
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), 10)
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
    good = jax.tree.map(jnp.ones_like, params)
    _, state = optimizer.update(good, optimizer.init(params), params)
    updates, after = optimizer.update({**good, "b": jnp.array([1.0, bad])}, state, params)
    jax.tree.map(lambda u: np.testing.assert_array_equal(u, np.zeros_like(u)), updates)
    jax.tree.map(np.testing.assert_array_equal, after.inner_state, state.inner_state)
    assert after.notfinite_count == 1 and not after.last_finite
    _, again = optimizer.update(good, after, params)
    assert again.notfinite_count == 0 and again.total_notfinite == 1 and again.last_finite


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"decay": "cos"}, "optimizer.decay='cos'"),
        ({"learning_rate": -1.0}, "optimizer.learning_rate"),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate"),
        ({"b2": 1.5}, "optimizer.b2=1.5"),
        ({"b1": 1.0}, "optimizer.b1=1.0 must be at least 0 and less than 1"),
        ({"epsilon": 0.0}, "optimizer.epsilon=0.0 must be positive"),
        ({"max_grad_norm": 0.0}, "optimizer.max_grad_norm=0.0"),
        ({"max_skips": 0}, "optimizer.max_skips=0"),
    ],
)
def test_config_names_the_field(fields: dict[str, object], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        OptimizerConfig(**fields).validate("optimizer")
