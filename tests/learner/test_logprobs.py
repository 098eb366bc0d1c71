"""Chunked log-probs and entropies against the full log-softmax, in value and gradient."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from rlvr.algo.objectives import ObjectiveConfig
from rlvr.learner.batch import Row, make_batch
from rlvr.learner.logprobs import row_logprobs, token_logprobs
from rlvr.learner.optimizer import OptimizerConfig, make_optimizer
from rlvr.learner.state import TrainState
from rlvr.learner.update import make_update_step
from rlvr.policy.config import PolicyConfig
from rlvr.policy.transformer import Policy

Tiny = Callable[[str], Any]
R, C = 3, 7
TEMPERATURE = 0.7
RNG = np.random.default_rng(0)
TARGETS = RNG.integers(0, 97, size=(R, C)).astype(np.int32)
HIDDEN = RNG.normal(size=(R, C, 48)).astype(np.float32)
BARS = RNG.normal(size=(2, R, C)).astype(np.float32)


@pytest.mark.parametrize(("kind", "chunk"), [("dense", 3), ("moe", 9)])  # untied and tied; 7 is no multiple of either
def test_chunks_are_the_full_log_softmax(tiny_policy: Tiny, kind: str, chunk: int) -> None:
    policy, params = tiny_policy(kind)
    name = "head" if kind == "dense" else "embed"
    rest, head = {k: v for k, v in params.items() if k != name}, params[name]

    def full(head: Any, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_p = jax.nn.log_softmax(policy.logits({**rest, name: head}, hidden) / TEMPERATURE, axis=-1)
        picked = jnp.take_along_axis(log_p, TARGETS[..., None], axis=-1)[..., 0]
        return picked, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def chunked(head: Any, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        return token_logprobs(policy, {**rest, name: head}, hidden, TARGETS, jnp.float32(TEMPERATURE), chunk)

    def pull(f: Any) -> Any:
        values, vjp = jax.vjp(f, head, jnp.asarray(HIDDEN))
        return values, vjp((jnp.asarray(BARS[0]), jnp.asarray(BARS[1])))

    got, want = jax.jit(lambda: pull(chunked))(), jax.jit(lambda: pull(full))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got, want)

    logits = np.asarray(policy.logits(params, jnp.asarray(HIDDEN)), np.float64) / TEMPERATURE
    log_p = scipy.special.log_softmax(logits, axis=-1)
    np.testing.assert_allclose(got[0][0], np.take_along_axis(log_p, TARGETS[..., None], -1)[..., 0], atol=1e-5)
    np.testing.assert_allclose(got[0][1], scipy.stats.entropy(np.exp(log_p), axis=-1), rtol=2e-5, atol=2e-6)


def test_a_token_is_scored_from_what_comes_before_it(tiny_policy: Tiny) -> None:
    policy, params = tiny_policy("mixed")
    tokens = RNG.integers(0, 97, size=(2, 9)).astype(np.int32)
    scored = np.array([[1, 2, 3], [6, 7, 8]], np.int32)
    positions = np.broadcast_to(np.arange(9, dtype=np.int32), tokens.shape)

    def both(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = policy.logits(params, policy.forward(params, tokens, positions).hidden)
        rows = row_logprobs(policy, params, tokens, jnp.array([5, 9]), scored, jnp.float32(1.0), 2)
        return logits, rows[0]

    logits, got = jax.jit(both)(params)
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    want = [[log_p[b, t - 1, tokens[b, t]] for t in scored[b]] for b in range(2)]
    np.testing.assert_allclose(got, want, atol=1e-5)


def largest_buffer(text: str) -> int:
    """Most elements of any array in a compiled program."""
    shapes = re.findall(r"\b(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]", text)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


def test_the_update_never_holds_logits_of_all_tokens() -> None:
    vocab, rows, columns = 5003, 4, 24
    config = PolicyConfig(
        vocab_size=vocab, dim=8, layers=1, query_heads=2, kv_heads=1, head_size=4, hidden=12, tied_head=False
    )
    policy = Policy(config)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    params = policy.abstract_params()
    state = TrainState(params, jax.eval_shape(optimizer.init, params))
    row = Row((1, 2), np.ones(columns, np.int32), np.zeros(columns, np.float32), 1.0, 0)
    batch = make_batch(
        [row] * rows, micro_rows=rows, length=30, columns=columns, aggregation="token_mean", budget=columns
    )
    objective = ObjectiveConfig(kl="k3", kl_coef=0.1, entropy_coef=0.1)

    step = make_update_step(policy, optimizer, objective, temperature=1.0, chunk=3)
    compiled = step.lower(state, batch, jnp.int32(1)).compile().as_text()
    # One chunk's logits and the [D, V] matrices are there; nothing near [R, C, V], forward or backward, is.
    assert vocab * 8 <= largest_buffer(compiled) <= vocab * rows * 3 * 1.01

    # The search can find them: in one chunk they are there.
    def score(params: Any, hidden: jax.Array, targets: jax.Array) -> jax.Array:
        return token_logprobs(policy, params, hidden, targets, jnp.float32(1.0), columns)[0].sum()

    hidden = jax.ShapeDtypeStruct((rows, columns, 8), jnp.float32)
    targets = jax.ShapeDtypeStruct((rows, columns), jnp.int32)
    whole = jax.jit(jax.grad(score)).lower(params, hidden, targets).compile().as_text()
    assert largest_buffer(whole) >= rows * columns * vocab
