"""Divergences by hand and at their ends, the sampled form's gradient by enumeration, and configs that mean nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import errors
from rlvr.algo.distill import DistillConfig, divergence, jensen_shannon, kl
from rlvr.algo.kl import k3_forward, k3_plus

STUDENT = jnp.array([0.3, -1.2, 0.8, 0.1])
TEACHER = jax.nn.log_softmax(jnp.array([-0.5, 0.4, 0.2, 1.1]))


def test_divergences_by_hand() -> None:
    """Of p = (1/2, 1/2) and q = (3/4, 1/4)."""
    p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.75, 0.25]))
    forward, reverse = 0.75 * np.log(1.5) + 0.25 * np.log(0.5), 0.5 * np.log(2 / 3) + 0.5 * np.log(2)
    np.testing.assert_allclose(jensen_shannon(p, q, 0.0), forward, rtol=1e-6)
    np.testing.assert_allclose(jensen_shannon(p, q, 1.0), reverse, rtol=1e-6)
    m = (0.625, 0.375)
    half = 0.5 * (0.75 * np.log(0.75 / m[0]) + 0.25 * np.log(0.25 / m[1]))
    half += 0.5 * (0.5 * np.log(0.5 / m[0]) + 0.5 * np.log(0.5 / m[1]))
    np.testing.assert_allclose(jensen_shannon(p, q, 0.5), half, rtol=1e-6)
    m = (0.25 * 0.75 + 0.75 * 0.5, 0.25 * 0.25 + 0.75 * 0.5)
    quarter = 0.25 * (0.75 * np.log(0.75 / m[0]) + 0.25 * np.log(0.25 / m[1]))
    quarter += 0.75 * (0.5 * np.log(0.5 / m[0]) + 0.5 * np.log(0.5 / m[1]))
    np.testing.assert_allclose(jensen_shannon(p, q, 0.25), quarter, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_a_divergence_is_zero_only_from_itself(beta: float) -> None:
    p = jax.nn.log_softmax(STUDENT)
    np.testing.assert_allclose(jensen_shannon(p, p, beta), 0.0, atol=1e-7)
    assert jensen_shannon(p, TEACHER, beta) > 0.01


def test_near_its_ends_the_divergence_is_a_share_of_the_kl_at_them() -> None:
    with jax.enable_x64(True):
        p, q = jax.nn.log_softmax(jnp.float64(STUDENT)), jax.nn.log_softmax(jnp.float64(TEACHER))
        np.testing.assert_allclose(jensen_shannon(p, q, 1e-5) / 1e-5, kl(q, p), rtol=1e-4)
        np.testing.assert_allclose(jensen_shannon(p, q, 1 - 1e-5) / 1e-5, kl(p, q), rtol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_gradient_is_that_of_differences(beta: float) -> None:
    with jax.enable_x64(True):
        logits, q = jnp.float64(STUDENT), jax.nn.log_softmax(jnp.float64(TEACHER))

        def of(x: jax.Array) -> jax.Array:
            return jensen_shannon(jax.nn.log_softmax(x), q, beta)

        steps = 1e-6 * jnp.eye(4)
        want = [(of(logits + step) - of(logits - step)) / 2e-6 for step in steps]
        np.testing.assert_allclose(jax.grad(of)(logits), want, rtol=1e-6, atol=1e-9)


def expected(loss: Any, *, by: str) -> jax.Array:
    """Gradient of a loss of (log student, log teacher) of one token, averaged over tokens drawn by one of them."""
    chance = {"student": jax.nn.softmax(STUDENT), "teacher": jnp.exp(TEACHER)}[by]
    return jax.grad(lambda t: jnp.sum(chance * loss(jax.nn.log_softmax(t), TEACHER)))(STUDENT)


REVERSE = jax.grad(lambda t: kl(jax.nn.log_softmax(t), TEACHER))(STUDENT)
FORWARD = jax.grad(lambda t: kl(TEACHER, jax.nn.log_softmax(t)))(STUDENT)


def test_the_advantage_must_be_stopped() -> None:
    """-sg[log teacher - log student] log student has the gradient of KL(student || teacher). Not stopped it is
    that of k1 or of a product, and not a divergence's at all; differentiating k1 itself gives nothing."""
    sg = jax.lax.stop_gradient
    np.testing.assert_allclose(expected(lambda s, t: -sg(t - s) * s, by="student"), REVERSE, atol=1e-6)
    np.testing.assert_allclose(expected(lambda s, t: s - t, by="student"), np.zeros(4), atol=1e-7)
    unstopped = expected(lambda s, t: -(t - s) * s, by="student")
    assert np.max(np.abs(np.asarray(unstopped - REVERSE))) > 0.05
    assert np.max(np.abs(np.asarray(REVERSE))) > 0.05


def test_estimators_of_both_sides_when_the_teacher_samples() -> None:
    """The student's side by k3 of the teacher's samples; the teacher's own side by k3+."""
    np.testing.assert_allclose(expected(lambda s, t: k3_forward(s - t), by="teacher"), FORWARD, atol=1e-6)
    teacher = jax.nn.softmax(STUDENT)  # the differentiated one now samples itself
    own = jax.grad(lambda t: jnp.sum(teacher * k3_plus(jax.nn.log_softmax(t) - TEACHER)))(STUDENT)
    np.testing.assert_allclose(own, REVERSE, atol=1e-6)
    p = jax.nn.log_softmax(STUDENT)
    np.testing.assert_allclose(jnp.sum(jnp.exp(TEACHER) * k3_forward(p - TEACHER)), kl(TEACHER, p), rtol=1e-5)


def test_each_side_of_pi_distill_has_its_kl() -> None:
    own = jnp.stack([jax.nn.log_softmax(STUDENT)] * 2)[None]
    other = jnp.stack([TEACHER] * 2)[None]
    got = divergence(DistillConfig("pi", "full"), own, other, jnp.array([[False, True]]))
    np.testing.assert_allclose(got[0], [kl(own[0, 0], TEACHER), kl(TEACHER, own[0, 0])], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "opd"}, "distill.method='opd' is not known.*none, on_policy, pi"),
        ({"method": "pi", "form": "exact"}, "distill.form='exact'"),
        ({"method": "on_policy", "teacher": "self"}, "distill.teacher='self'.*live, start, ema, checkpoint"),
        ({"method": "pi", "alpha": 1.5}, "distill.alpha=1.5 must be between 0.0 and 1.0"),
        ({"method": "on_policy", "form": "full", "beta": -0.1}, "distill.beta=-0.1"),
        ({"method": "on_policy", "coef": float("nan")}, "distill.coef=nan"),
        ({"alpha": 0.3}, "distill.alpha=0.3 means nothing here: it is of distill.method='pi'"),
        ({"coef": 0.3}, "distill.coef=0.3 means nothing here"),
        ({"method": "pi", "teacher": "ema"}, "teacher='ema' means nothing here: .*the policy with the hint"),
        ({"method": "pi", "hinted": False}, "hinted=False means nothing here"),
        ({"method": "pi", "reward": 0.0}, "reward=0.0 means nothing here"),
        ({"method": "on_policy", "beta": 0.5}, "beta=0.5 means nothing here: .*distill.form='full'"),
        ({"method": "on_policy", "ema": 0.9}, "ema=0.9 means nothing here: .*teacher='ema'"),
        ({"method": "on_policy", "teacher": "checkpoint"}, "checkpoint='' with distill.teacher='checkpoint'.*set both"),
        ({"method": "on_policy", "checkpoint": "x"}, "checkpoint='x' with distill.teacher='live'"),
        ({"method": "on_policy", "hinted": False}, "hinted=False with distill.teacher='live': .*the policy itself"),
        ({"method": "on_policy", "coef": 0.0}, "coef=0.0 with distill.method='on_policy': nothing would be distilled"),
    ],
)
def test_what_means_nothing_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        DistillConfig(**fields).validate()
