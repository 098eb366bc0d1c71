"""Masked reductions, over numpy and jax arrays alike."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

Array = Any


def masked(x: Array, mask: Array) -> Array:
    """Returns x where mask, else exact zero; garbage (inf, nan) under the mask cannot leak, nor its gradient."""
    return jnp.where(mask, x, jnp.zeros_like(x))


def masked_sum(x: Array, mask: Array) -> Array:
    """Sum of x over the mask."""
    return jnp.sum(masked(x, mask))


def masked_max(x: Array, mask: Array) -> Array:
    """Largest x over the mask; 0 where the mask is empty. x must be >= 0."""
    return jnp.max(masked(x, mask), initial=0.0)
