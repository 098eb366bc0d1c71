"""Attention within packed rows: by blocks, dense, and one query at a time in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.policy import packed
from rlvr.policy.packed import Segments, attend_packed
from rlvr.policy.transformer import Policy

Tiny = Callable[[str], tuple[Policy, Any]]
K, G, HEAD = 2, 3, 6
# Two rows: a prompt of 5 with completions of 3, 6 and 2, and a sequence of 7; one sequence of 11, and padding.
OWN = np.array([[0] * 5 + [1] * 3 + [2] * 6 + [3] * 2 + [4] * 7 + [-1] * 2, [0] * 11 + [-1] * 14], np.int32)
PREFIX = np.array([[0] * 16 + [4] * 7 + [-1] * 2, [0] * 11 + [-1] * 14], np.int32)
POSITIONS = np.array(
    [[*range(5), *range(5, 8), *range(5, 11), 5, 6, *range(7), 0, 0], [*range(11), *[0] * 14]], np.int32
)
SEGMENTS = Segments(OWN, PREFIX)
REAL = OWN >= 0
FORMS = {"plain": {}, "window": {"window": 4}, "sinks": {"sinks": np.linspace(-1, 2, K * G, dtype=np.float32)}}


def draw(batch: int, length: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(length)
    shapes = [(batch, length, heads, HEAD) for heads in (K * G, K, K)]
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def one_by_one(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, window: int = 0, sinks: np.ndarray | None = None
) -> np.ndarray:
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    out = np.zeros(query.shape)
    for b, t in zip(*np.nonzero(REAL), strict=True):
        mine = (OWN[b] == OWN[b, t]) | (OWN[b] == PREFIX[b, t])
        seen = [
            u
            for u in np.flatnonzero(mine)
            if POSITIONS[b, u] <= POSITIONS[b, t] and (not window or POSITIONS[b, t] - POSITIONS[b, u] < window)
        ]
        for head in range(K * G):
            scores = key[b, seen, head // G] @ query[b, t, head] * 0.4
            weights = np.exp(scores)
            total = weights.sum() + (0.0 if sinks is None else np.exp(sinks[head]))
            out[b, t, head] = weights / total @ value[b, seen, head // G]
    return out


@pytest.mark.parametrize("block", [4, 8, 32], ids=["blocks_of_4", "blocks_of_8", "dense"])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_token_sees(form: str, block: int) -> None:
    """25 tokens are no multiple of a block; blocks of 4 lie wholly within other segments, and are skipped."""
    arrays = draw(2, 25)
    options = FORMS[form]
    got = jax.jit(
        lambda *x: attend_packed(*x, jnp.asarray(POSITIONS), Segments(*SEGMENTS), scale=0.4, block=block, **options)
    )(*arrays)
    np.testing.assert_allclose(got[REAL], one_by_one(*arrays, **options)[REAL], atol=3e-6)
    assert np.all(np.isfinite(got))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_blocks_are_those_of_the_dense_form(form: str) -> None:
    arrays, weights = draw(2, 25), np.random.default_rng(1).normal(size=(2, 25, K * G, HEAD)).astype(np.float32)
    weights[~REAL] = 0.0
    window, sinks = FORMS[form].get("window", 0), FORMS[form].get("sinks")
    sinks = np.full(K * G, -40.0, np.float32) if sinks is None else sinks  # so far below that it is none

    def gradient(block: int) -> Any:
        def scalar(query: jax.Array, key: jax.Array, value: jax.Array, sinks: jax.Array) -> jax.Array:
            form: Any = {"scale": 0.4, "window": window, "sinks": sinks, "block": block}
            out = attend_packed(query, key, value, jnp.asarray(POSITIONS), Segments(*SEGMENTS), **form)
            return jnp.sum(out**2 * weights)

        return jax.jit(jax.grad(scalar, argnums=(0, 1, 2, 3)))(*arrays, sinks)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient(4), gradient(32))


def test_only_blocks_that_something_sees_are_visited() -> None:
    count = int(packed.count_pairs(jnp.asarray(POSITIONS[:1]), Segments(OWN[:1], PREFIX[:1]), block=4))
    seen = np.zeros((7, 7), bool)
    for t, u in np.ndindex(25, 25):
        mine = OWN[0, u] in (OWN[0, t], PREFIX[0, t]) and OWN[0, t] >= 0 and POSITIONS[0, u] <= POSITIONS[0, t]
        seen[t // 4, u // 4] |= mine
    assert count == seen.sum() < 0.6 * 28


def test_a_shared_prompt_gives_the_states_of_rows_of_their_own(tiny_policy: Tiny) -> None:
    """In value and gradient, through the whole network, mixture included."""
    policy, params = tiny_policy("mixed")
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, 97, size=OWN.shape).astype(np.int32)
    bars = rng.normal(size=(*OWN.shape, 48)).astype(np.float32)
    own = [np.flatnonzero((OWN[0] == s) | (OWN[0] == PREFIX[0, np.argmax(OWN[0] == s)])) for s in (1, 2, 3, 4)]
    places = [(0, at) for at in own] + [(1, np.flatnonzero(OWN[1] == 0))]
    alone = np.zeros((5, 11), np.int32)
    alone_bars = np.zeros((5, 11, 48), np.float32)
    for i, (row, at) in enumerate(places):
        alone[i, : len(at)] = tokens[row, at]
        new = OWN[row, at] == OWN[row, at[-1]]  # a prompt's states count once: in the first of its rows
        alone_bars[i, : len(at)] = bars[row, at] * (new | (i == 0))[:, None]
    positions = np.broadcast_to(np.arange(11, dtype=np.int32), alone.shape)

    def run(params: Any, tokens: np.ndarray, positions: np.ndarray, segments: Any, bars: np.ndarray) -> Any:
        hidden = policy.forward(params, tokens, positions, segments=segments).hidden
        return jnp.sum(hidden * bars), hidden

    step = jax.jit(jax.grad(run, has_aux=True))
    together = step(params, tokens, POSITIONS, SEGMENTS, np.where(REAL[..., None], bars, 0.0))
    apart = step(params, alone, positions, None, alone_bars)
    for i, (row, at) in enumerate(places):
        np.testing.assert_allclose(together[1][row, at], apart[1][i, : len(at)], atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * float(np.max(np.abs(b)))), together[0], apart[0]
    )
