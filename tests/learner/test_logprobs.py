"""Chunked log-probs and entropies against the full log-softmax, in value and gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from launch.benches.rows import largest_buffer
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.learner.batch import Row, make_batches
from rlvr.learner.logprobs import token_logprobs, token_loss
from rlvr.learner.loss import Totals
from rlvr.learner.update import micro_loss
from rlvr.policy.config import PolicyConfig
from rlvr.policy.transformer import Policy

Tiny = Callable[[str], Any]
R, T, C = 3, 9, 7
COUNTED = 5  # of the columns, the others are left out
TEMPERATURE = 0.7
RNG = np.random.default_rng(0)
SOURCES = RNG.integers(0, T, size=(R, C)).astype(np.int32)  # some state predicts several tokens
TARGETS = RNG.integers(0, 97, size=(R, C)).astype(np.int32)
HIDDEN = RNG.normal(size=(R, T, 48)).astype(np.float32)
FACTORS = RNG.normal(size=(2, R, C)).astype(np.float32)
DRAWABLE = (RNG.random((R, C, 97)) < 0.3) | (np.arange(97) == TARGETS[..., None])
MASK = np.broadcast_to(np.arange(C) < COUNTED, (R, C))


def a_loss(logprobs: jax.Array, entropies: jax.Array, fields: Any) -> Any:
    """Any function of each token; not linear."""
    each = fields["a"] * jnp.exp(0.2 * logprobs) + fields["b"] * entropies**2
    each = jnp.where(fields["mask"], each, 0.0)
    sums = {"logprobs": jnp.sum(jnp.where(fields["mask"], logprobs, 0.0))}
    return jnp.sum(each), (sums, {"largest": jnp.max(jnp.where(fields["mask"], entropies, 0.0))})


FIELDS = {"a": FACTORS[0], "b": FACTORS[1], "mask": MASK}


# Untied, by 3 columns, and some tokens left out; tied, all at once.
@pytest.mark.parametrize(("kind", "chunk", "filtered"), [("dense", 9, True), ("moe", 100, False)])
def test_chunks_are_the_full_log_softmax(tiny_policy: Tiny, kind: str, chunk: int, filtered: bool) -> None:
    policy, params = tiny_policy(kind)
    name = "head" if kind == "dense" else "embed"
    rest, head = {k: v for k, v in params.items() if k != name}, params[name]
    scored = (SOURCES, TARGETS, jnp.int32(COUNTED), jnp.float32(TEMPERATURE), chunk)
    drawable = DRAWABLE if filtered else np.ones_like(DRAWABLE)
    support = np.packbits(drawable, axis=-1) if filtered else None

    def full(head: Any, hidden: jax.Array) -> Any:
        states = jnp.take_along_axis(hidden, SOURCES[..., None], axis=1)
        logits = policy.logits({**rest, name: head}, states) / TEMPERATURE
        total = jnp.log(jnp.sum(jnp.exp(logits), axis=-1, keepdims=True, where=drawable))
        log_p = logits - total
        picked = jnp.take_along_axis(log_p, TARGETS[..., None], axis=-1)[..., 0]
        return a_loss(picked, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1, where=drawable), FIELDS)

    def chunked(head: Any, hidden: jax.Array) -> Any:
        return token_loss(policy, {**rest, name: head}, hidden, *scored, a_loss, FIELDS, support)

    def pull(f: Any) -> Any:
        both = jax.value_and_grad(lambda *x: jax.tree.map(lambda y: 3 * y, f(*x)), argnums=(0, 1), has_aux=True)
        return both(head, jnp.asarray(HIDDEN))

    got, want = jax.jit(lambda: pull(chunked))(), jax.jit(lambda: pull(full))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got, want)
    without = jax.jit(lambda: chunked(head, jnp.asarray(HIDDEN)))()  # no gradient is asked for
    np.testing.assert_allclose(3 * without[0], want[0][0], rtol=1e-5)

    states = np.take_along_axis(HIDDEN, SOURCES[..., None], axis=1)
    logits = np.asarray(policy.logits(params, jnp.asarray(states)), np.float64) / TEMPERATURE
    log_p = scipy.special.log_softmax(np.where(drawable, logits, -np.inf), axis=-1)
    picked = np.take_along_axis(log_p, TARGETS[..., None], -1)[..., 0]
    scores = jax.jit(lambda p: token_logprobs(policy, p, HIDDEN, *scored, support))(params)
    np.testing.assert_allclose(scores[:, :COUNTED], picked[:, :COUNTED], atol=1e-5)
    entropies = scipy.stats.entropy(np.exp(log_p), axis=-1)[:, :COUNTED]
    np.testing.assert_allclose(without[1][1]["largest"], entropies.max(), rtol=2e-5)
    np.testing.assert_allclose(without[1][0]["logprobs"], picked[:, :COUNTED].sum(), rtol=1e-5)


def test_a_head_that_is_not_trained_costs_no_gradient(tiny_policy: Tiny) -> None:
    """Adapters leave it frozen: there is one product less."""
    policy, params = tiny_policy("dense")
    scored = (SOURCES, TARGETS, jnp.int32(COUNTED), jnp.float32(TEMPERATURE), 9)

    def value(params: Any, hidden: jax.Array) -> jax.Array:
        return token_loss(policy, params, hidden, *scored, a_loss, FIELDS)[0]

    products = [
        str(jax.make_jaxpr(jax.grad(value, argnums=wanted))(params, HIDDEN)).count("dot_general")
        for wanted in (1, (0, 1))
    ]
    assert products == [2, 3]


def test_the_update_never_holds_logits_of_all_tokens() -> None:
    vocab, columns, chunk = 5003, 24, 12
    config = PolicyConfig(
        vocab_size=vocab, dim=8, layers=1, query_heads=2, kv_heads=1, head_size=4, hidden=12, tied_head=False
    )
    policy = Policy(config)
    params = policy.abstract_params()
    row = Row((1, 2), np.ones(columns, np.int32), np.zeros(columns, np.float32), 1.0, 0)
    (batch,), _ = make_batches([row] * 4, micro_rows=1, length=128)
    objective = ObjectiveConfig(kl="k3", kl_coef=0.1, entropy_coef=0.1)
    totals = Totals(*(np.float32(x) for x in (1, 1, 0.1, 0.1)))

    def gradient(chunk: int) -> str:
        def loss(params: Any) -> Any:
            return micro_loss(policy, params, batch, totals, objective, 1.0, chunk)

        return jax.jit(jax.grad(loss, has_aux=True)).lower(params).compile().as_text()

    # One chunk's logits and the [D, V] matrices are there; nothing near [96, V], forward or backward, is.
    assert vocab * 8 <= largest_buffer(gradient(chunk)) / 4 <= vocab * chunk * 1.01
    # The search can find them: in one chunk they are there.
    assert largest_buffer(gradient(96)) / 4 >= vocab * 96
