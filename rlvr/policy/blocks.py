"""The experts as loops over blocks of sorted rows, as many as there are: what no token was sent to costs nothing.

A loop over experts, and in it over blocks of rows whose number is not static: no matrix is copied more than once, rows
are gathered as they are needed, and what lies between two products stays near the processor. A dynamic number of blocks
has no automatic gradient, so the backward pass is written out.

The rows of all experts of a shard come to a sum that is not known before either. They are made `room` at a time, a
little more than an even spread brings, and added to their tokens: mostly in one round, and in as many as it takes when
more tokens choose the experts that are here. A token's rows are added one by one in the order of its experts, so that
the rounds do not show in the result.

All blocks of a call have the same size. How a product rounds depends on its shape (seen on XLA CPU: 24 or 32 rows
against 48 and more), so blocks fitted to the groups would let a token's value depend on where its neighbours go.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy.config import PolicyConfig
from rlvr.policy.experts import Experts, Projection, project
from rlvr.policy.mlp import gated
from rlvr.policy.sorting import Order, Ranks, add_rows, blank, gather, no_gradient, rank_rows, vary_alike

Activation = Callable[[jax.Array, jax.Array], jax.Array]

SPARE = 1.25  # room for rows, as a multiple of what an even spread brings


class Form(NamedTuple):
    """What is static of a call.

    Attributes:
        k: choices of a token.
        block: rows of a block.
        rows: how many there can be.
        room: rows of a round.
        save: whether gate and up are kept for the backward pass, not made again.
        act: combines them.
    """

    k: int
    block: int
    rows: int
    room: int
    save: bool
    act: Activation


def blocked_rows(
    x: jax.Array, order: Order, gates: jax.Array, weights: Experts, k: int, config: PolicyConfig
) -> jax.Array:
    """The experts on sorted rows; see `rlvr.policy.backends.ragged_rows`."""
    held, tokens = weights.gate.weight.shape[0], x.shape[0]
    block = block_size(tokens * k, config.experts, partition.platform())
    rows = tokens * min(k, held)
    # With all experts here every row is filled, and what is kept wastes no room.
    full = held == config.experts
    room = rows if full else min(round_up(int(SPARE * tokens * k * held / config.experts), block), rows)
    form = Form(k, block, rows, room, full, functools.partial(gated, config))
    return _experts(*vary_alike(x, order, gates, weights), form)


def block_size(rows: int, experts: int, platform: str) -> int:
    """Rows of a block, by what an expert gets of `rows` when they spread evenly: half a block an expert is multiplied
    in vain, and each block has its cost (on CPU a product packs the matrix anew, on TPU the sum of the gradient by the
    matrices is read and written).

    On CPU about a sixth, 8 to 128; on TPU half, 16 to 2,048.
    """
    even = rows / experts
    if platform == "cpu":
        return min(max(16 * round(even / 96), 8), 128)
    return min(max(16 * round(even / 32), 16), 2048)


def round_up(size: int, unit: int) -> int:
    """Returns the next multiple of a unit."""
    return -(-size // unit) * unit


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _experts(x: jax.Array, order: Order, gates: jax.Array, weights: Experts, form: Form) -> jax.Array:
    return _run(x, order, gates, weights, form._replace(save=False))[0]


def _forward(x: jax.Array, order: Order, gates: jax.Array, weights: Experts, form: Form) -> tuple[jax.Array, Any]:
    out, *hidden = _run(x, order, gates, weights, form)
    return out, (x, order, gates, weights, hidden)


def _run(x: jax.Array, order: Order, gates: jax.Array, weights: Experts, form: Form) -> tuple[jax.Array, ...]:
    """Returns the sums [N, D] and, if they are to be saved, gate and up before the activation, [rows, F] each."""
    tokens = _padded(order, form) // form.k
    ranks = rank_rows(order, form.k, gates)
    hidden = weights.gate.weight.shape[2]

    def rows_of(low: jax.Array | int) -> tuple[jax.Array, ...]:
        def group(g: jax.Array, carry: Any) -> Any:
            expert = _pick(weights, g)

            def one(at: jax.Array, left: jax.Array, carry: Any) -> Any:
                part = gather(x, _slice(tokens, at, form.block))
                gate, up = _apply(part, expert.gate), _apply(part, expert.up)
                made = (_apply(form.act(gate, up), expert.down), gate, up)
                return tuple(_write(old, new, at - low) for old, new in zip(carry, made[: len(carry)], strict=True))

            return _over_blocks(order.sizes, g, form, low, one, carry)

        widths = (x.shape[1], *((hidden,) * 2 if form.save else ()))
        empty = tuple(blank((form.room + form.block, width), x) for width in widths)
        made: tuple[jax.Array, ...] = _over_groups(order, group, empty)
        return made

    if form.room == form.rows:
        rows, *saved = rows_of(0)
        return add_rows(_sums(x, form, ranks), rows, ranks)[: x.shape[0]], *saved

    def add(low: jax.Array, out: jax.Array) -> jax.Array:
        return add_rows(out, rows_of(low)[0], ranks, low, low + form.room)

    return (_over_rounds(order, form, add, _sums(x, form, ranks))[: x.shape[0]],)


def _backward(form: Form, saved: Any, gradient: jax.Array) -> tuple[jax.Array, Any, jax.Array, Experts]:
    x, order, gates, weights, hidden = saved
    assignments, ranks = _padded(order, form), rank_rows(order, form.k)
    flat = gates.reshape(-1)

    def one_expert(expert: Experts, low: jax.Array | int) -> Callable[..., Any]:
        def one(at: jax.Array, left: jax.Array, carry: Any) -> Any:
            by_rows, by_gates, total = carry
            which = _slice(assignments, at, form.block)
            # What stands past the group may be anything, infinities too.
            own = (jnp.arange(form.block) < left)[:, None]
            part, slope = (jnp.where(own, gather(a, which // form.k), 0) for a in (x, gradient))
            gate, pull_gate = jax.vjp(_apply, part, expert.gate)
            up, pull_up = jax.vjp(_apply, part, expert.up)
            if form.save:
                gate, up = (jnp.where(own, _slice(a, at, form.block), 0) for a in hidden)
            activated, pull_act = jax.vjp(form.act, gate, up)
            _, pull_down = jax.vjp(_apply, activated, expert.down)
            weight = gather(flat, which)[:, None].astype(slope.dtype)
            by_activated, by_down = pull_down(slope)[0], pull_down(slope * weight)[1]
            # The product of the row with its slope, without making the row again.
            by_gate = jnp.sum(activated * by_activated, axis=-1, dtype=_wide(x.dtype))
            if expert.down.bias is not None:
                by_gate += jnp.sum(slope * expert.down.bias[None, :], axis=-1, dtype=_wide(x.dtype))
            (by_part, gate_up), (by_part_too, up_up) = (
                pull(by) for pull, by in zip((pull_gate, pull_up), pull_act(by_activated * weight), strict=True)
            )
            new = Experts(gate_up, up_up, by_down)
            total = jax.tree.map(lambda total, new: total + new.astype(total.dtype), total, new)
            return _write(by_rows, by_part + by_part_too, at - low), _write(by_gates, by_gate, at), total

        return one

    def add(low: jax.Array | int, carry: Any) -> Any:
        by_x, by_gates, by_weights = carry

        def group(g: jax.Array, carry: Any) -> Any:
            by_rows, by_gates, by_weights = carry
            expert = _pick(weights, g)
            # What the rounds before made of this expert's rows.
            total = jax.tree.map(lambda w: jnp.where(low == 0, 0, w.astype(_wide(w.dtype))), _pick(by_weights, g))
            by_rows, by_gates, total = _over_blocks(
                order.sizes, g, form, low, one_expert(expert, low), (by_rows, by_gates, total)
            )
            return (
                by_rows,
                by_gates,
                jax.tree.map(
                    lambda out, new: jax.lax.dynamic_update_index_in_dim(out, new.astype(out.dtype), g, axis=0),
                    by_weights,
                    total,
                ),
            )

        by_rows = blank((form.room + form.block, x.shape[1]), x)
        by_rows, by_gates, by_weights = _over_groups(order, group, (by_rows, by_gates, by_weights))
        return add_rows(by_x, by_rows, ranks, low, low + form.room), by_gates, by_weights

    by_weights = jax.tree.map(lambda w: blank(w.shape, w), weights)
    by_gates = blank((form.rows + form.block,), x, _wide(x.dtype))
    carry = (_sums(x, form, ranks), by_gates, by_weights)
    by_x, by_gates, by_weights = add(0, carry) if form.room == form.rows else _over_rounds(order, form, add, carry)
    mine = order.inverse < jnp.sum(order.sizes)
    by_gates = jnp.where(mine, gather(by_gates, jnp.minimum(order.inverse, form.rows - 1)), 0)
    return by_x[: x.shape[0]], no_gradient(order), by_gates.reshape(gates.shape).astype(gates.dtype), by_weights


_experts.defvjp(_forward, _backward)


def _over_rounds(order: Order, form: Form, body: Callable[..., Any], carry: Any) -> Any:
    """Calls body(first row, carry) for the rounds that it takes: one at least, which writes what is still blank."""
    count = jnp.maximum(-(-jnp.sum(order.sizes) // form.room), 1)
    with jax.named_scope("rounds"):
        return jax.lax.fori_loop(0, count, lambda i, carry: body(i * form.room, carry), carry)


def _over_groups(order: Order, body: Callable[..., Any], carry: Any) -> Any:
    with jax.named_scope("groups"):
        return jax.lax.fori_loop(0, order.sizes.size, body, carry)


def _over_blocks(
    sizes: jax.Array, g: jax.Array, form: Form, low: jax.Array | int, body: Callable[..., Any], carry: Any
) -> Any:
    """Calls body(first row, rows left, carry) for the blocks of group g among the rows of the round that begins at low.

    The last block of a group reaches into the next one, which comes after it and writes those rows again.
    """
    start = jnp.sum(jnp.where(jnp.arange(sizes.size) < g, sizes, 0))
    end = jnp.minimum(start + sizes[g], low + form.room)
    start = jnp.maximum(start, low)
    count = jnp.maximum(-(-(end - start) // form.block), 0)

    def one(i: jax.Array, carry: Any) -> Any:
        at = start + i * form.block
        return body(at, end - at, carry)

    with jax.named_scope("blocks"):
        return jax.lax.fori_loop(0, count, one, carry)


def _padded(order: Order, form: Form) -> jax.Array:
    """Returns the assignments of the sorted rows, as many as there can be, and of a block past them."""
    wanted = form.rows + form.block
    return jnp.pad(order.order, (0, max(wanted - order.order.size, 0)))[:wanted]


def _sums(x: jax.Array, form: Form, ranks: Ranks) -> jax.Array:
    return blank((ranks.places.size // form.k, x.shape[1]), x)


def _apply(x: jax.Array, p: Projection) -> jax.Array:
    """Applies one expert's matrix to a block of rows."""

    def product(a: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.dot(a, w, preferred_element_type=_wide(a.dtype)).astype(a.dtype)

    return project(x, p, product, lambda bias: bias[None, :])


def _wide(dtype: Any) -> Any:
    """Returns the type of sums."""
    return jnp.promote_types(dtype, jnp.float32)


def _pick(weights: Experts, g: jax.Array) -> Experts:
    return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, g, keepdims=False), weights)


def _slice(x: jax.Array, at: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, at, size)


def _write(x: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, new, at, axis=0)
