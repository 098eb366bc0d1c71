"""The dense feed-forward layer: SwiGLU (Shazeer, 2002.05202)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy.config import PolicyConfig
from rlvr.policy.parameters import fan_in, param


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    config: PolicyConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        c = self.config
        w_gate = param(self, "gate", ("embed", "hidden"), (c.dim, c.hidden), fan_in(0))
        w_up = param(self, "up", ("embed", "hidden"), (c.dim, c.hidden), fan_in(0))
        w_down = param(self, "down", ("hidden", "embed"), (c.hidden, c.dim), fan_in(0))
        gate = jnp.einsum("BTD,DF->BTF", x, w_gate.astype(x.dtype))
        up = jnp.einsum("BTD,DF->BTF", x, w_up.astype(x.dtype))
        hidden = partition.constrain(jax.nn.silu(gate) * up, "batch", None, "hidden")
        out = jnp.einsum("BTF,FD->BTD", hidden, w_down.astype(x.dtype))
        return partition.constrain(out, "batch", None, None)
