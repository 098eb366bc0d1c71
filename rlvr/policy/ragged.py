"""Sorted rows times their group's matrix for TPU and GPU: `jax.lax.ragged_dot`, with a gradient of its own.

XLA TPU has kernels for the product and for its gradient by the rows. The gradient by the matrices, in JAX's rule a
product with a ragged contraction, it expands to every row for every group; here that is a loop over groups and blocks.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlvr.policy.sorting import no_gradient, vary_alike

BLOCK = 512  # rows: long enough that a block's product outweighs adding it to the sum


def ragged_product(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns [M, out]: rows [M, in], sorted by group, each with its matrix of weights [G, in, out]; sizes [G].

    What stands past the groups is not used, and their product is whatever the backend leaves there.
    """
    return _product(*vary_alike(rows, weights, sizes))


@jax.custom_vjp
def _product(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot(rows, weights, sizes)


def _forward(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> tuple[jax.Array, Any]:
    return jax.lax.ragged_dot(rows, weights, sizes), (rows, weights, sizes)


def _backward(saved: Any, gradient: jax.Array) -> tuple[Any, ...]:
    rows, weights, sizes = saved
    by_rows = jax.lax.ragged_dot(gradient, jnp.swapaxes(weights, 1, 2), sizes)
    return by_rows, _outer(rows, gradient, sizes).astype(weights.dtype), no_gradient(sizes)


_product.defvjp(_forward, _backward)


def _outer(rows: jax.Array, gradient: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns [G, in, out] the sum over each group's rows of row * gradient."""
    block = min(BLOCK, rows.shape[0])
    ends = jnp.cumsum(sizes)

    def group(g: jax.Array, out: jax.Array) -> jax.Array:
        start = ends[g] - sizes[g]

        def one(i: jax.Array, total: jax.Array) -> jax.Array:
            wanted = start + i * block
            at = jnp.minimum(wanted, rows.shape[0] - block)
            row = at + jnp.arange(block)
            own = ((row >= wanted) & (row < ends[g]))[:, None]
            # Both are masked: a row that belongs to no group may hold anything, infinities too.
            part, slope = (jnp.where(own, jax.lax.dynamic_slice_in_dim(a, at, block), 0) for a in (rows, gradient))
            return total + jnp.einsum("mi,mo->io", part, slope, preferred_element_type=jnp.float32)

        nothing, _ = vary_alike(jnp.zeros(out.shape[1:], jnp.float32), sizes)
        total = jax.lax.fori_loop(0, -(-sizes[g] // block), one, nothing)
        return jax.lax.dynamic_update_index_in_dim(out, total.astype(out.dtype), g, axis=0)

    shape = (sizes.size, rows.shape[1], gradient.shape[1])
    empty, _ = vary_alike(jnp.zeros(shape, rows.dtype), sizes)
    return jax.lax.fori_loop(0, sizes.size, group, empty)
