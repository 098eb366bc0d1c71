"""The estimators' expectations and gradients, exactly, on a softmax of four actions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import errors
from rlvr.algo.kl import LOSS_ESTIMATORS, k1, k2, k3, k3_plus, k3_weighted
from rlvr.algo.objectives import ObjectiveConfig

LOGITS = jnp.array([0.3, -1.2, 0.8, 0.1])
REFERENCE = jax.nn.log_softmax(jnp.array([-0.5, 0.4, 0.2, 1.1]))


def kl(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(a) * (a - b))


def expected_gradient(estimator: Callable[[Any], Any]) -> jax.Array:
    """Gradient of the estimator as a loss, averaged over actions drawn from the policy (which is held fixed)."""
    chance = jax.nn.softmax(LOGITS)
    return jax.grad(lambda t: jnp.sum(chance * estimator(jax.nn.log_softmax(t) - REFERENCE)))(LOGITS)


REVERSE = jax.grad(lambda t: kl(jax.nn.log_softmax(t), REFERENCE))(LOGITS)
FORWARD = jax.grad(lambda t: kl(REFERENCE, jax.nn.log_softmax(t)))(LOGITS)


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    policy = jax.nn.log_softmax(LOGITS)
    x, exact = policy - REFERENCE, kl(policy, REFERENCE)
    np.testing.assert_allclose(jnp.sum(jnp.exp(policy) * k1(x)), exact, rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(jnp.exp(policy) * k3(x)), exact, rtol=1e-6)
    assert abs(jnp.sum(jnp.exp(policy) * k2(x)) - exact) > 0.01 * exact


def test_gradient_table() -> None:
    assert np.max(np.abs(np.asarray(REVERSE - FORWARD))) > 0.05  # or the table would tell nothing
    np.testing.assert_allclose(expected_gradient(k1), np.zeros(4), atol=1e-7)
    np.testing.assert_allclose(expected_gradient(k2), REVERSE, atol=1e-6)
    np.testing.assert_allclose(expected_gradient(k3), FORWARD, atol=1e-6)
    np.testing.assert_allclose(expected_gradient(k3_plus), REVERSE, atol=1e-6)
    old = jax.nn.log_softmax(LOGITS)
    np.testing.assert_allclose(expected_gradient(lambda x: k3_weighted(x, x + REFERENCE - old)), REVERSE, atol=1e-6)


def test_the_weighted_k3_stays_unbiased_off_policy() -> None:
    """Actions drawn from an older policy: the weight makes value and gradient those of the policy now."""
    old = jax.nn.log_softmax(LOGITS + jnp.array([0.5, -0.3, 0.0, 0.9]))

    def drawn_before(t: jax.Array) -> jax.Array:
        now = jax.nn.log_softmax(t)
        return jnp.sum(jnp.exp(old) * k3_weighted(now - REFERENCE, now - old))

    value, gradient = jax.value_and_grad(drawn_before)(LOGITS)
    np.testing.assert_allclose(value, kl(jax.nn.log_softmax(LOGITS), REFERENCE), rtol=1e-6)
    np.testing.assert_allclose(gradient, REVERSE, atol=1e-6)


def test_of_a_hosts_array_nothing_is_compiled() -> None:
    x = np.float32([-30.0, -1.5, 0.0, 0.25, 30.0])
    out = k3(x)
    assert type(out) is np.ndarray and out.dtype == np.float32
    np.testing.assert_allclose(out, jax.jit(k3)(x), rtol=1e-6)


def test_k3_plus_has_the_value_of_k3() -> None:
    x = jnp.array([-2.0, 0.0, 0.5, 3.0])
    np.testing.assert_allclose(k3_plus(x), k3(x), rtol=1e-6)


def test_k1_is_no_loss() -> None:
    assert "k1" not in LOSS_ESTIMATORS
    with pytest.raises(errors.ConfigError, match=r"objective\.kl='k1': .*zero in expectation"):
        ObjectiveConfig(kl="k1", kl_coef=0.1).validate()


@pytest.mark.parametrize("x", [-1000.0, -3.0, 0.0, 1e-4, 3.0, 1000.0])
def test_k3_is_never_negative_and_finite(x: float) -> None:
    value, gradient = jax.value_and_grad(k3)(x)
    assert value >= 0 and np.isfinite(value) and np.isfinite(gradient)
    if abs(x) < 20:
        np.testing.assert_allclose(value, np.expm1(-x) + x, rtol=1e-5, atol=1e-7)
