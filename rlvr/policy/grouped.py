"""Products of sorted rows with one matrix per group, and the permutation that sorts them, with backward passes that are
gathers and products themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def permute(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """Returns x[order] for x [M, ...], a permutation [M] and its inverse [M].

    The gradient is a gather by the inverse, where that of plain indexing is a scatter-add: slower, and on some
    accelerators in no fixed order.
    """
    return x[order]


def _permute_forward(x: jax.Array, order: jax.Array, inverse: jax.Array) -> tuple[jax.Array, Any]:
    return x[order], (order, inverse)


def _permute_backward(saved: Any, gradient: jax.Array) -> tuple[Any, ...]:
    order, inverse = saved
    return gradient[inverse], _no_gradient(order), _no_gradient(inverse)


permute.defvjp(_permute_forward, _permute_backward)


def grouped_dot(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """Multiplies sorted rows, each with its group's matrix: `jax.lax.ragged_dot` for CPU.

    There XLA expands `ragged_dot` to the product with every group's matrix. This is a loop over groups, and within a
    group over blocks of rows: no row is multiplied twice but those at a group's end, no matrix is copied more than
    once. A group's last block reaches into the next group, which comes after it and writes those rows again.

    Args:
        rows: [M, in], group by group.
        weights: [G, in, out].
        sizes: [G] int32 rows of each group; their sum is at most M.

    Returns:
        [M, out]; rows past the groups hold anything finite.
    """
    return _grouped_dot(*_vary_alike(rows, weights, sizes))


@jax.custom_vjp
def _grouped_dot(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    return _multiply(rows, weights, sizes, transposed=False)


def _multiply(rows: jax.Array, weights: jax.Array, sizes: jax.Array, *, transposed: bool) -> jax.Array:
    count, groups = rows.shape[0], weights.shape[0]
    blocks = block_sizes(count, groups)
    padded = jnp.pad(rows, ((0, blocks[-1]), (0, 0)))
    starts = jnp.cumsum(sizes) - sizes
    contract = (((1,), (1 if transposed else 0,)), ((), ()))

    def group(g: jax.Array, out: jax.Array) -> jax.Array:
        matrix = jax.lax.dynamic_index_in_dim(weights, g, keepdims=False)

        def one(offset: jax.Array, block: int, out: jax.Array) -> jax.Array:
            at = starts[g] + offset
            part = jax.lax.dynamic_slice_in_dim(padded, at, block)
            product = jax.lax.dot_general(part, matrix, contract, preferred_element_type=jnp.float32)
            return jax.lax.dynamic_update_slice_in_dim(out, product.astype(out.dtype), at, axis=0)

        return _over_blocks(sizes[g], blocks, one, out)

    shape = (count + blocks[-1], weights.shape[1 if transposed else 2])
    _, empty = _vary_alike(rows, jnp.zeros(shape, rows.dtype))
    return jax.lax.fori_loop(0, groups, group, empty)[:count]


def _over_blocks(
    size: jax.Array,
    blocks: tuple[int, int],
    body: Callable[[jax.Array, int, jax.Array], jax.Array],
    carry: jax.Array,
) -> jax.Array:
    """Calls body(offset, block, carry) for large blocks while they fit into `size` rows, then for small ones."""
    large, small = blocks
    whole = size // large
    carry = jax.lax.fori_loop(0, whole, lambda i, carry: body(i * large, large, carry), carry)
    done = whole * large
    rest = -(-(size - done) // small)
    return jax.lax.fori_loop(0, rest, lambda i, carry: body(done + i * small, small, carry), carry)


def _grouped_dot_forward(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> tuple[jax.Array, Any]:
    return _multiply(rows, weights, sizes, transposed=False), (rows, weights, sizes)


def _grouped_dot_backward(saved: Any, gradient: jax.Array) -> tuple[Any, ...]:
    rows, weights, sizes = saved
    count, groups = rows.shape[0], weights.shape[0]
    blocks = block_sizes(count, groups)
    padded, padded_gradient = (jnp.pad(x, ((0, blocks[-1]), (0, 0))) for x in (rows, gradient))
    starts = jnp.cumsum(sizes) - sizes
    contract = (((0,), (0,)), ((), ()))

    def group(g: jax.Array, out: jax.Array) -> jax.Array:
        def one(offset: jax.Array, block: int, total: jax.Array) -> jax.Array:
            at = starts[g] + offset
            own = (offset + jnp.arange(block))[:, None] < sizes[g]
            part = jax.lax.dynamic_slice_in_dim(padded, at, block)
            slope = jnp.where(own, jax.lax.dynamic_slice_in_dim(padded_gradient, at, block), 0)
            return total + jax.lax.dot_general(part, slope, contract, preferred_element_type=jnp.float32)

        _, total = _vary_alike(rows, jnp.zeros(weights.shape[1:], jnp.float32))
        total = _over_blocks(sizes[g], blocks, one, total)
        return jax.lax.dynamic_update_index_in_dim(out, total.astype(out.dtype), g, axis=0)

    _, empty = _vary_alike(rows, jnp.zeros_like(weights))
    by_weight = jax.lax.fori_loop(0, groups, group, empty)
    return _multiply(gradient, weights, sizes, transposed=True), by_weight, _no_gradient(sizes)


_grouped_dot.defvjp(_grouped_dot_forward, _grouped_dot_backward)


def _vary_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Marks arrays of a manual `shard_map` as varying over all mesh axes that any of them varies over.

    Loop carries and the gradients of a custom rule must agree in this; the mark's own gradient is the sum over the
    axes that it adds.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    axes = frozenset[Any]().union(*varying)
    return tuple(
        jax.lax.pcast(x, tuple(axes - own), to="varying") if axes - own else x
        for x, own in zip(arrays, varying, strict=True)
    )


def block_sizes(rows: int, groups: int) -> tuple[int, int]:
    """Rows of a large and of a small block.

    Large ones are up to half a group's fair share, at most 256: a product packs the matrix anew for each. Small ones
    do the rest of a group, of which the last is partly multiplied in vain.
    """
    size = 8
    while size < 256 and size * 4 <= rows // groups:
        size *= 2
    return size, max(size // 8, 8)


def _no_gradient(x: jax.Array) -> np.ndarray:
    """What JAX wants in place of the gradient of an integer."""
    return np.zeros(x.shape, jax.dtypes.float0)
