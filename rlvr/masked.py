"""Masked reductions, over numpy and jax arrays alike, and sums over the segments of a row (jax)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any


def module_of(x: Array) -> Any:
    """Returns the module whose functions take this array: `jax.numpy` (under jit too) or `numpy`."""
    return jnp if isinstance(x, jax.Array) else np


def wide(x: Array) -> Array:
    """Returns x as floats: NumPy's in float64, JAX's in its default type."""
    return x.astype(float) if isinstance(x, jax.Array) else np.asarray(x, np.float64)


def masked(x: Array, mask: Array) -> Array:
    """Returns x where mask, else exact zero; garbage (inf, nan) under the mask cannot leak, nor its gradient."""
    return jnp.where(mask, x, jnp.zeros_like(x))


def masked_sum(x: Array, mask: Array) -> Array:
    """Sum of x over the mask."""
    return jnp.sum(masked(x, mask))


def masked_max(x: Array, mask: Array) -> Array:
    """Largest x over the mask; 0 where the mask is empty. x must be >= 0."""
    return jnp.max(masked(x, mask), initial=0.0)


def segment_sum(x: Array, mask: Array, segments: Array) -> Array:
    """Sums x over the mask in each segment of each row, and gives every element the sum of its own segment.

    Args:
        x, mask: [R, S].
        segments: [R, S] int32, below S; garbage where not mask.

    Returns:
        [R, S]; 0 where not mask.
    """
    segments = masked(segments, mask)
    sums = jax.vmap(lambda row, ids: jax.ops.segment_sum(row, ids, num_segments=row.shape[0]))
    return masked(jnp.take_along_axis(sums(masked(x, mask), segments), segments, axis=1), mask)


def segment_mean(x: Array, mask: Array, segments: Array) -> Array:
    """Like `segment_sum`, the mean instead."""
    counts = segment_sum(jnp.ones_like(x), mask, segments)
    return segment_sum(x, mask, segments) / jnp.maximum(counts, 1)
