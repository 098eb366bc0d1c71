"""The mixture-of-experts layer: router, dropless dispatch to experts split over the mesh, statistics."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy.config import PolicyConfig
from rlvr.policy.dispatch import dispatch
from rlvr.policy.experts import Experts, Projection
from rlvr.policy.parameters import BIAS, adapter, fan_in, param, zeros
from rlvr.policy.router import RouterStats, choose_experts, compute_gates, router_stats, score_experts


class Moe(nn.Module):
    """Top-k mixture of gated linear units."""

    config: PolicyConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, counts: jax.Array, replay: jax.Array | None
    ) -> tuple[jax.Array, RouterStats, jax.Array]:
        """Mixes x [B, T, D].

        Args:
            counts: [B, T] how often each token counts in the statistics.
            replay: [B, T, k] experts to use instead of the router's choice where they are not negative, or None.

        Returns:
            ([B, T, D], statistics, the router's own choices [B, T, k]).
        """
        c = self.config
        router = param(self, "router", ("embed", None), (c.dim, c.experts), fan_in(0))
        # The router stays in float32: a choice that flips between sampling and training is the known way for RL of
        # mixtures to collapse.
        logits = jnp.einsum("BTD,DE->BTE", x.astype(jnp.float32), router, precision=jax.lax.Precision.HIGHEST)
        if c.router_bias:
            logits += param(self, "router_bias", (None,), (c.experts,), zeros)[None, None, :]
        bias = param(self, "selection_bias", (None,), (c.experts,), zeros) if c.selection_bias else None
        scores = score_experts(logits, c)
        choices = choose_experts(scores, bias, c)
        used = choices if replay is None else jnp.where(replay >= 0, replay, choices)
        weights = Experts(
            gate=self._projection("gate", c.dim, c.expert_hidden),
            up=self._projection("up", c.dim, c.expert_hidden),
            down=self._projection("down", c.expert_hidden, c.dim),
        )
        weights = jax.tree.map(lambda w: w.astype(x.dtype), weights)
        out = dispatch(x, used, compute_gates(scores, used, c), weights, c)
        return partition.constrain(out, "batch", None, None), router_stats(logits, scores, used, counts), choices

    def _projection(self, name: str, inputs: int, outputs: int) -> Projection:
        axes = ("embed", "expert_hidden") if name != "down" else ("expert_hidden", "embed")
        shape = (self.config.experts, inputs, outputs)
        weight = param(self, name, ("experts", *axes), shape, fan_in(1))
        bias = None
        if self.config.expert_bias:
            bias = param(self, name + BIAS, ("experts", axes[1]), (shape[0], outputs), zeros)
        return Projection(weight, bias, *(adapter(self, name) or (None, None)))
