"""The dense feed-forward layer: a gated linear unit (Shazeer, 2002.05202)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy.config import PolicyConfig
from rlvr.policy.parameters import linear

# The sigmoid's gain in gpt-oss, with which it approximates the exact GELU.
SWISH_GAIN = 1.702


def _clamped_silu(gate: jax.Array, up: jax.Array, limit: float) -> jax.Array:
    """gpt-oss: the gate is bounded above, up on both sides, and up is an offset from one."""
    gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    return gate * jax.nn.sigmoid(SWISH_GAIN * gate) * (up + 1)


GATES: Mapping[str, Callable[[jax.Array, jax.Array, float], jax.Array]] = {
    "silu": lambda gate, up, limit: jax.nn.silu(gate) * up,
    "gelu": lambda gate, up, limit: jax.nn.gelu(gate, approximate=True) * up,
    "clamped_silu": _clamped_silu,
}


def gated(config: PolicyConfig, gate: jax.Array, up: jax.Array) -> jax.Array:
    """Combines the two branches of the unit, of equal shapes."""
    return GATES[config.activation](gate, up, config.activation_limit)


class Mlp(nn.Module):
    """down(activation(gate(x)) * up(x)), with F = `hidden`."""

    config: PolicyConfig
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        dim = self.config.dim
        gate = linear(self, "gate", x, ("embed", "hidden"), (dim, self.hidden))
        up = linear(self, "up", x, ("embed", "hidden"), (dim, self.hidden))
        hidden = partition.constrain(gated(self.config, gate, up), "batch", None, "hidden")
        out = linear(self, "down", hidden, ("hidden", "embed"), (self.hidden, dim))
        return partition.constrain(out, "batch", None, None)
