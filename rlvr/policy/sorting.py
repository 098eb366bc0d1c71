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
    inverse = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
    sizes = jnp.sum(owner[:, None] == jnp.arange(groups)[None, :], axis=0, dtype=jnp.int32)
    return Order(order, inverse, sizes)


def row_tokens(order: Order, k: int, count: int) -> jax.Array:
    """Returns [count] the token of each sorted row; rows past the assignments name token 0."""
    return fit(order.order // k, count)


def gather(x: jax.Array, index: jax.Array) -> jax.Array:
    """Returns x[index] for an index that is in range, which plain indexing would make sure of for each element."""
    return x.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def fit(x: jax.Array, count: int) -> jax.Array:
    """Returns x [M] cut, or filled up with zeros, to [count]."""
    return x[:count] if count <= x.size else jnp.pad(x, (0, count - x.size))


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
    return sum_rows(gradient, order, None, k), no_gradient(order)


_take.defvjp(_take_forward, _take_backward)


def combine_rows(rows: jax.Array, order: Order, gates: jax.Array, k: int) -> jax.Array:
    """Returns [N, D] each token's sorted rows [R, D], weighted with gates [N, k] and summed; no row of no group."""
    return _combine(*vary_alike(rows, order, gates), k)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _combine(rows: jax.Array, order: Order, gates: jax.Array, k: int) -> jax.Array:
    return sum_rows(rows, order, gates, k)


def _combine_forward(rows: jax.Array, order: Order, gates: jax.Array, k: int) -> tuple[jax.Array, Any]:
    return sum_rows(rows, order, gates, k), (rows, order, gates)


def _combine_backward(k: int, saved: Any, gradient: jax.Array) -> tuple[Any, ...]:
    rows, order, gates = saved
    count = rows.shape[0]
    gate = fit(gates.reshape(-1)[order.order], count).astype(rows.dtype)
    mine = jnp.arange(count) < jnp.sum(order.sizes)
    by_rows = jnp.where(mine[:, None], gather(gradient, row_tokens(order, k, count)) * gate[:, None], 0)
    products = [jnp.sum(row * gradient, axis=-1, dtype=jnp.float32) for row in _own_rows(rows, order, k)]
    return by_rows, no_gradient(order), jnp.stack(products, axis=-1).astype(gates.dtype)


_combine.defvjp(_combine_forward, _combine_backward)


def sum_rows(rows: jax.Array, order: Order, gates: jax.Array | None, k: int) -> jax.Array:
    """`combine_rows` without a rule for its gradient; gates None are ones."""
    out = None
    for j, row in enumerate(_own_rows(rows, order, k)):
        weighted = row if gates is None else row * gates[:, j, None].astype(row.dtype)
        out = weighted if out is None else out + weighted
    assert out is not None
    return out


def _own_rows(rows: jax.Array, order: Order, k: int) -> list[jax.Array]:
    """Returns k arrays [N, D]: each token's j-th row, zero where it belongs to no group, whatever stands there."""
    total = jnp.sum(order.sizes)
    places = order.inverse.reshape(-1, k)
    return [
        jnp.where((places[:, j] < total)[:, None], gather(rows, jnp.minimum(places[:, j], rows.shape[0] - 1)), 0)
        for j in range(k)
    ]


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
