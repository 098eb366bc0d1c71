"""Rotary position embedding (Su et al., 2104.09864), in the half-split convention of Hugging Face."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rlvr.policy.config import RopeConfig


def rope_frequencies(config: RopeConfig, head_size: int) -> np.ndarray:
    """Returns [h/2] float32: radians a position by which each pair turns."""
    plain = config.theta ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    return SCALINGS[config.scaling](plain, config).astype(np.float32)


def _scale_linear(plain: np.ndarray, config: RopeConfig) -> np.ndarray:
    return plain / config.factor


def _scale_llama3(plain: np.ndarray, config: RopeConfig) -> np.ndarray:
    """Llama 3.1: fast pairs stay, slow ones are slowed by the factor, those between are blended by their turns."""
    turns = config.original_length * plain / (2 * math.pi)
    kept = (turns - config.low_frequency) / (config.high_frequency - config.low_frequency)
    kept = np.clip(kept, 0.0, 1.0)
    return kept * plain + (1 - kept) * plain / config.factor


def _scale_yarn(plain: np.ndarray, config: RopeConfig) -> np.ndarray:
    """YaRN (Peng et al., 2309.00071, section 3.2): the same, blended linearly in the index of the pair."""

    def pair_that_turns(times: float) -> float:
        ratio = math.log(config.original_length / (times * 2 * math.pi))
        return plain.size * ratio / math.log(config.theta)

    low, high = pair_that_turns(config.beta_fast), pair_that_turns(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * plain.size - 1)
    slowed = np.clip((np.arange(plain.size) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return slowed * plain / config.factor + (1 - slowed) * plain


SCALINGS: Mapping[str, Callable[[np.ndarray, RopeConfig], np.ndarray]] = {
    "none": lambda plain, config: plain,
    "linear": _scale_linear,
    "llama3": _scale_llama3,
    "yarn": _scale_yarn,
}


def rope_angles(positions: jax.Array, head_size: int, config: RopeConfig) -> tuple[jax.Array, jax.Array]:
    """Returns (cos, sin), each [B, T, h/2] float32, for positions [B, T]."""
    frequencies = jnp.asarray(rope_frequencies(config, head_size))
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None, :]
    return jnp.cos(angles) * config.magnitude, jnp.sin(angles) * config.magnitude


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x [B, T, heads, h]: the pairs are (i, i + h/2)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
