"""Rows sorted by the group they go to, and back, with backward passes that are gathers and sums in a fixed order."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Order(NamedTuple):
    """The assignments of N tokens, k each, sorted by their group.

    Attributes:
        order: [N * k] assignments (token * k + j) group by group; those of no group last.
        inverse: [N * k] where each assignment stands in `order`.
        sizes: [G] int32 assignments of each group.
    """

    order: jax.Array
    inverse: jax.Array
    sizes: jax.Array


def sort_by(owner: jax.Array, groups: int) -> Order:
    """Sorts assignments by owner [N * k], the group of each; one outside 0..groups-1 belongs to none."""
    owner = jnp.where((owner >= 0) & (owner < groups), owner, groups)
    order = jnp.argsort(owner, stable=True)
    sizes = jnp.sum(owner[:, None] == jnp.arange(groups)[None, :], axis=0, dtype=jnp.int32)
    return Order(order, invert(order), sizes)


def invert(order: jax.Array) -> jax.Array:
    """Returns where each element of a permutation [M] stands in it."""
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))


def row_tokens(order: Order, k: int, count: int) -> jax.Array:
    """Returns [count] the token of each sorted row; rows past the assignments name token 0."""
    return fit(order.order // k, count)


def gather(x: jax.Array, index: jax.Array) -> jax.Array:
    """Returns x[index] for an index that is in range, which plain indexing would make sure of for each element."""
    return x.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def fit(x: jax.Array, count: int) -> jax.Array:
    """Returns x [M] cut, or filled up with zeros, to [count]."""
    return x[:count] if count <= x.size else jnp.pad(x, (0, count - x.size))


class Ranks(NamedTuple):
    """Where the rows of each token stand, as lists: its r-th row, in the order in which they are sorted.

    Tokens come in pieces of `PIECE`, filled up with tokens of no rows.

    Attributes:
        places: [k * pieces * PIECE] where the r-th row of each token stands, `NOWHERE` past its last; then the next r.
        gates: of these rows, shaped alike, or None.
        depths: [pieces] int32 how many rows the token with most has in each piece.
    """

    places: jax.Array
    gates: jax.Array | None
    depths: jax.Array


PIECE = 1024
NOWHERE = np.iinfo(np.int32).max


def rank_rows(order: Order, k: int, gates: jax.Array | None = None) -> Ranks:
    """Lists each token's rows; gates [N, k] of the choices, in their order."""
    places = order.inverse.reshape(-1, k).astype(jnp.int32)
    mine = places < jnp.sum(order.sizes)
    rank = jnp.sum(mine[:, None, :] & (places[:, None, :] < places[:, :, None]), axis=-1)
    at = (rank[:, :, None] == jnp.arange(k)[None, None, :]) & mine[:, :, None]  # [N, choice, rank]
    tokens = places.shape[0]
    piece = min(PIECE, tokens)
    missing = -tokens % piece

    def pick(x: jax.Array, none: int) -> jax.Array:
        kept = jnp.sum(jnp.where(at, x[:, :, None], 0), axis=1)
        there = jnp.any(at, axis=1)
        return jnp.pad(jnp.where(there, kept, none).T, ((0, 0), (0, missing)), constant_values=none).reshape(-1)

    counts = jnp.pad(jnp.sum(mine, axis=-1, dtype=jnp.int32), (0, missing))
    depths = jnp.max(counts.reshape(-1, piece), axis=-1)
    return Ranks(pick(places, NOWHERE), None if gates is None else pick(gates, 0), depths)


def add_rows(
    out: jax.Array, rows: jax.Array, ranks: Ranks, low: jax.Array | int = 0, high: jax.Array | int = NOWHERE
) -> jax.Array:
    """Returns out [pieces * PIECE, D] with the rows of each token added, weighted with their gates, one by one in the
    order in which they are sorted, so that rows may come in several calls. The first, with low = 0, does not read out.

    Args:
        rows: [M, D] those that stand at `low` and after it; of those at `high` and after it none is used.
    """
    tokens, pieces = out.shape[0], ranks.depths.size
    size = tokens // pieces
    index = jnp.clip(ranks.places - low, 0, rows.shape[0] - 1)
    mine = (ranks.places >= low) & (ranks.places < high)
    gates = None if ranks.gates is None else ranks.gates.astype(rows.dtype)

    def piece(p: jax.Array | int, out: jax.Array) -> jax.Array:
        def add(r: jax.Array | int, total: jax.Array) -> jax.Array:
            at = r * tokens + p * size
            row = gather(rows, jax.lax.dynamic_slice_in_dim(index, at, size))
            if gates is not None:
                row *= jax.lax.dynamic_slice_in_dim(gates, at, size)[:, None]
            return total + jnp.where(jax.lax.dynamic_slice_in_dim(mine, at, size)[:, None], row, 0)

        total = jnp.where(low == 0, 0, jax.lax.dynamic_slice_in_dim(out, p * size, size))
        if pieces == 1:  # few tokens, as in decoding: turns of a loop would cost more than they do
            return functools.reduce(lambda total, r: add(r, total), range(ranks.places.size // tokens), total)
        with jax.named_scope("ranks"):
            total = jax.lax.fori_loop(0, ranks.depths[p], add, total)
        return jax.lax.dynamic_update_slice_in_dim(out, total, p * size, axis=0)

    if pieces == 1:
        return piece(0, out)
    with jax.named_scope("pieces"):
        return jax.lax.fori_loop(0, pieces, piece, out)


def sum_ranked(rows: jax.Array, order: Order, k: int) -> jax.Array:
    """`sum_rows` without a rule for its gradient."""
    ranks = rank_rows(order, k)
    out = add_rows(blank((ranks.places.size // k, rows.shape[1]), rows), rows, ranks)
    return out[: order.inverse.size // k]


def take_rows(x: jax.Array, order: Order, k: int, count: int) -> jax.Array:
    """Returns [count, D] the tokens x [N, D] as `order` arranges them; those past its groups are any tokens.

    The gradient of plain indexing would be a scatter-add: slower, and on some accelerators in no fixed order.
    """
    return _take(*vary_alike(x, order), k, count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _take(x: jax.Array, order: Order, k: int, count: int) -> jax.Array:
    return gather(x, row_tokens(order, k, count))


def _take_forward(x: jax.Array, order: Order, k: int, count: int) -> tuple[jax.Array, Any]:
    return gather(x, row_tokens(order, k, count)), order


def _take_backward(k: int, count: int, order: Order, gradient: jax.Array) -> tuple[Any, ...]:
    return sum_ranked(gradient, order, k), no_gradient(order)


_take.defvjp(_take_forward, _take_backward)


def sum_rows(rows: jax.Array, order: Order, k: int) -> jax.Array:
    """Returns [N, D] the sum of each token's sorted rows [R, D]; none of those that belong to no group, whose gradient
    is anything."""
    return _sum(*vary_alike(rows, order), k)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _sum(rows: jax.Array, order: Order, k: int) -> jax.Array:
    return sum_ranked(rows, order, k)


def _sum_forward(rows: jax.Array, order: Order, k: int) -> tuple[jax.Array, Any]:
    return sum_ranked(rows, order, k), (order, rows.shape[0])


def _sum_backward(k: int, saved: Any, gradient: jax.Array) -> tuple[Any, ...]:
    order, count = saved
    return gather(gradient, row_tokens(order, k, count)), no_gradient(order)


_sum.defvjp(_sum_forward, _sum_backward)


def blank(shape: tuple[int, ...], like: jax.Array, dtype: Any = None) -> jax.Array:
    """Returns an array of the type of `like`, or another, that is written before it is read: it may hold anything."""
    return vary_alike(_allocate(shape, dtype or like.dtype), like)[0]


def _allocate(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.lax.empty(shape, dtype)


@jax.custom_vjp
def permute(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """Returns x[order] for x [M, ...], a permutation [M] and its inverse [M]; the gradient is a gather too."""
    return x[order]


def _permute_forward(x: jax.Array, order: jax.Array, inverse: jax.Array) -> tuple[jax.Array, Any]:
    return x[order], (order, inverse)


def _permute_backward(saved: Any, gradient: jax.Array) -> tuple[Any, ...]:
    order, inverse = saved
    return gradient[inverse], no_gradient(order), no_gradient(inverse)


permute.defvjp(_permute_forward, _permute_backward)


def vary_alike(*trees: Any) -> Any:
    """Marks arrays of a manual `shard_map` as varying over all mesh axes that any of them varies over.

    Loop carries and the gradients of a custom rule must agree in this; the mark's own gradient is the sum over the
    axes that it adds.
    """
    axes = frozenset[Any]().union(*(_varying(x) for x in jax.tree.leaves(trees)))

    def mark(x: jax.Array) -> jax.Array:
        missing = axes - _varying(x)
        return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(mark, trees)


def _varying(x: jax.Array) -> frozenset[Any]:
    return frozenset(jax.typeof(x).manual_axis_type.varying)


def no_gradient(tree: Any) -> Any:
    """What JAX wants in place of the gradient of integers."""
    return jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), tree)
