"""The experts as loops over blocks of sorted rows: the form for CPU, where XLA expands `ragged_dot` over all experts.

A loop over experts, and in it over blocks of rows whose number is not static: no matrix is copied more than once, rows
are gathered as they are needed, and what lies between two products stays in the cache. A dynamic number of blocks has
no automatic gradient, so the backward pass is written out.

All blocks of a call have the same size. How a product rounds depends on its shape (seen on XLA CPU: 24 or 32 rows
against 48 and more), so blocks fitted to the groups would let a token's value depend on where its neighbours go.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlvr.policy.config import PolicyConfig
from rlvr.policy.experts import Experts, Projection, project
from rlvr.policy.mlp import gated
from rlvr.policy.sorting import Order, gather, no_gradient, row_tokens, sum_rows, vary_alike

Activation = Callable[[jax.Array, jax.Array], jax.Array]


def blocked_rows(x: jax.Array, order: Order, weights: Experts, k: int, config: PolicyConfig) -> jax.Array:
    """The experts on sorted rows; see `rlvr.policy.backends.ragged_rows`."""
    x, order, weights = vary_alike(x, order, weights)
    block = block_size(x.shape[0] * k, config.experts)
    return _experts(x, order, weights, k, block, functools.partial(gated, config))


def block_size(rows: int, experts: int) -> int:
    """Rows of a block: about a sixth of what an expert gets of `rows` when they spread evenly, 8 to 128.

    Half a block an expert is multiplied in vain, and a product packs the matrix anew for each block.
    """
    return min(max(16 * round(rows / experts / 96), 8), 128)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _experts(x: jax.Array, order: Order, weights: Experts, k: int, block: int, act: Activation) -> jax.Array:
    return _run(x, order, weights, k, block, act, save=False)[0]


def _forward(
    x: jax.Array, order: Order, weights: Experts, k: int, block: int, act: Activation
) -> tuple[jax.Array, Any]:
    out, *hidden = _run(x, order, weights, k, block, act, save=True)
    return out, (x, order, weights, hidden)


def _run(
    x: jax.Array, order: Order, weights: Experts, k: int, block: int, act: Activation, *, save: bool
) -> tuple[jax.Array, ...]:
    """Returns rows [R, D] and, if they are to be saved, gate and up before the activation, [R, F] each."""
    tokens = _padded_tokens(x, order, weights, k, block)

    def group(g: jax.Array, carry: Any) -> Any:
        expert = _pick(weights, g)

        def one(at: jax.Array, left: jax.Array, carry: Any) -> Any:
            part = gather(x, _slice(tokens, at, block))
            gate, up = _apply(part, expert.gate), _apply(part, expert.up)
            made = (_apply(act(gate, up), expert.down), gate, up)
            return tuple(_write(old, new, at) for old, new in zip(carry, made[: len(carry)], strict=True))

        return _over_blocks(order.sizes, g, block, one, carry)

    widths = (x.shape[1], *((weights.gate.weight.shape[2],) * 2 if save else ()))
    empty, _ = vary_alike(tuple(jnp.zeros((tokens.size, width), x.dtype) for width in widths), x)
    out: tuple[jax.Array, ...] = jax.lax.fori_loop(0, order.sizes.size, group, empty)
    return out


def _backward(k: int, block: int, act: Activation, saved: Any, gradient: jax.Array) -> tuple[jax.Array, Any, Experts]:
    x, order, weights, hidden = saved
    tokens = _padded_tokens(x, order, weights, k, block)

    def group(g: jax.Array, carry: Any) -> Any:
        expert = _pick(weights, g)
        by_rows, by_weights = carry

        def one(at: jax.Array, left: jax.Array, carry: Any) -> Any:
            by_rows, total = carry
            part, own = gather(x, _slice(tokens, at, block)), (jnp.arange(block) < left)[:, None]
            gate, up, slope = (_slice(a, at, block) for a in (*hidden, gradient))
            activated, pull_act = jax.vjp(act, gate, up)
            _, pull_down = jax.vjp(_apply, activated, expert.down)
            _, pull_gate = jax.vjp(_apply, part, expert.gate)
            _, pull_up = jax.vjp(_apply, part, expert.up)
            by_activated, by_down = pull_down(jnp.where(own, slope, 0))
            by_gated, by_upped = pull_act(by_activated)
            (by_part, by_gate), (by_part_too, by_up) = pull_gate(by_gated), pull_up(by_upped)
            new = Experts(by_gate, by_up, by_down)
            total = jax.tree.map(lambda total, new: total + new.astype(jnp.float32), total, new)
            return _write(by_rows, by_part + by_part_too, at), total

        nothing, _ = vary_alike(jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), expert), x)
        by_rows, total = _over_blocks(order.sizes, g, block, one, (by_rows, nothing))
        return by_rows, jax.tree.map(
            lambda out, new: jax.lax.dynamic_update_index_in_dim(out, new.astype(out.dtype), g, axis=0),
            by_weights,
            total,
        )

    empty, _ = vary_alike((jnp.zeros((tokens.size, x.shape[1]), x.dtype), jax.tree.map(jnp.zeros_like, weights)), x)
    by_rows, by_weights = jax.lax.fori_loop(0, order.sizes.size, group, empty)
    return sum_rows(by_rows, order, None, k), no_gradient(order), by_weights


_experts.defvjp(_forward, _backward)


def _over_blocks(sizes: jax.Array, g: jax.Array, block: int, body: Callable[..., Any], carry: Any) -> Any:
    """Calls body(first row, rows left in the group, carry) for the blocks of group g.

    The last block of a group reaches into the next one, which comes after it and writes those rows again.
    """
    start = jnp.sum(jnp.where(jnp.arange(sizes.size) < g, sizes, 0))
    count = -(-sizes[g] // block)
    return jax.lax.fori_loop(0, count, lambda i, carry: body(start + i * block, sizes[g] - i * block, carry), carry)


def _padded_tokens(x: jax.Array, order: Order, weights: Experts, k: int, block: int) -> jax.Array:
    """Returns the tokens of the sorted rows, as many as there can be, and of a block past them."""
    return row_tokens(order, k, x.shape[0] * min(k, weights.gate.weight.shape[0]) + block)


def _apply(x: jax.Array, p: Projection) -> jax.Array:
    """Applies one expert's matrix to a block of rows."""

    def product(a: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.dot(a, w, preferred_element_type=jnp.float32).astype(a.dtype)

    return project(x, p, product, lambda bias: bias[None, :])


def _pick(weights: Experts, g: jax.Array) -> Experts:
    return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, g, keepdims=False), weights)


def _slice(x: jax.Array, at: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, at, size)


def _write(x: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, new, at, axis=0)
