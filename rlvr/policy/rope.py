"""Rotary position embedding (Su et al., 2104.09864), in the half-split convention of Hugging Face."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rope_angles(positions: jax.Array, head_size: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Returns (cos, sin), each [B, T, h/2] float32, for positions [B, T]."""
    exponent = jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size
    frequencies = 1.0 / (theta**exponent)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x [B, T, heads, h]: the pairs are (i, i + h/2)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
