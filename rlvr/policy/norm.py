"""Root-mean-square norm (Zhang and Sennrich, 1910.07467)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlvr.partition import Axes
from rlvr.policy.config import PolicyConfig
from rlvr.policy.parameters import ones, param


class RmsNorm(nn.Module):
    """x / rms(x) * scale, computed in float32.

    Attributes:
        config: of the policy.
        axes: logical axes of the last dimensions of the input, over all of which the mean is taken.
    """

    config: PolicyConfig
    axes: Axes = (None,)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., axes] to the same."""
        shape = x.shape[x.ndim - len(self.axes) :]
        scale = param(self, "scale", self.axes, shape, ones)
        wide = x.astype(jnp.float32)
        dims = tuple(range(x.ndim - len(self.axes), x.ndim))
        variance = jnp.sum(wide**2, axis=dims, keepdims=True) / math.prod(shape)
        scale = scale.reshape((1,) * (x.ndim - len(shape)) + shape)
        return (wide * jax.lax.rsqrt(variance + self.config.norm_epsilon) * scale).astype(x.dtype)
