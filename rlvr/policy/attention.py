"""Grouped-query attention (Ainslie et al., 2305.13245): one function for training, prefill and decode."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy import cache as cache_lib
from rlvr.policy.config import PolicyConfig
from rlvr.policy.norm import RmsNorm
from rlvr.policy.parameters import linear, param, zeros
from rlvr.policy.rope import apply_rope


class Attention(nn.Module):
    """Causal attention over the row itself, or over a cache that the row extends.

    Attributes:
        config: of the policy.
        window: how many tokens a query sees, its own included; 0 for all before it.
    """

    config: PolicyConfig
    window: int = 0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        angles: tuple[jax.Array, jax.Array] | None,
        cache: cache_lib.LayerCache | None,
    ) -> tuple[jax.Array, cache_lib.LayerCache | None]:
        """Maps x [B, T, D] at consecutive positions [B, T] to ([B, T, D], the extended cache); no angles, no RoPE."""
        c = self.config

        def project(name: str, heads: int, axis: str) -> jax.Array:
            axes, shape = ("embed", axis, None), (c.dim, heads, c.head_size)
            return linear(self, name, x, axes, shape, bias=c.attention_bias)  # [B, T, heads, h]

        query = project("query", c.query_heads, "query_heads")
        key = project("key", c.kv_heads, "kv_heads")
        value = project("value", c.kv_heads, "kv_heads")
        if c.qk_norm == "head":
            query, key = RmsNorm(c, name="query_norm")(query), RmsNorm(c, name="key_norm")(key)
        elif c.qk_norm == "width":
            query = RmsNorm(c, ("query_heads", None), name="query_norm")(query)
            key = RmsNorm(c, ("kv_heads", None), name="key_norm")(key)
        query = partition.constrain(query, "batch", None, "query_heads", None)
        key = partition.constrain(key, "batch", None, "kv_heads", None)
        if angles is not None:
            query, key = apply_rope(query, *angles), apply_rope(key, *angles)

        if cache is None:
            keys, values = key.swapaxes(1, 2), value.swapaxes(1, 2)  # [B, K, T, h]
        else:
            cache = cache_lib.extend(cache, key, value, positions[:, 0])
            keys, values = cache.key, cache.value  # [B, K, L, h]
        sinks = param(self, "sinks", ("query_heads",), (c.query_heads,), zeros) if c.sinks else None
        scale = c.attention_scale or c.head_size**-0.5
        attended = attend(query, keys, values, positions, scale=scale, window=self.window, sinks=sinks)
        axes, shape = ("query_heads", None, "embed"), (c.query_heads, c.head_size, c.dim)
        out = linear(self, "out", attended, axes, shape, inputs=2, bias=c.out_bias)
        return partition.constrain(out, "batch", None, None), cache


def attend(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    positions: jax.Array,
    *,
    scale: float,
    window: int = 0,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention in float32.

    Args:
        query: [B, T, H, h].
        keys, values: [B, K, L, h]; entry j sits at position j.
        positions: [B, T]; a query at i sees the entries j with 0 <= i - j, and i - j < window where there is one.
        scale: the scores are multiplied by it.
        sinks: [H] logits, not scaled, that take their part of each head's softmax and carry no value; or None.

    Returns:
        [B, T, H, h], in the query's dtype.
    """
    batch, length, query_heads, head_size = query.shape
    kv_heads = keys.shape[1]
    grouped = query.reshape(batch, length, kv_heads, query_heads // kv_heads, head_size)
    scores = jnp.einsum("BTKgh,BKLh->BKgTL", grouped, keys, preferred_element_type=jnp.float32)
    distance = positions[:, :, None] - jnp.arange(keys.shape[2])[None, None, :]  # [B, T, L]
    visible = (distance >= 0) & (distance < window) if window else distance >= 0
    scores = jnp.where(visible[:, None, None], scores * scale, jnp.finfo(jnp.float32).min)
    if sinks is None:
        probabilities = jax.nn.softmax(scores, axis=-1)
    else:
        sink = sinks.astype(jnp.float32).reshape(1, kv_heads, query_heads // kv_heads, 1, 1)
        largest = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sink))
        exponentials = jnp.exp(scores - largest)
        total = jnp.sum(exponentials, axis=-1, keepdims=True) + jnp.exp(sink - largest)
        probabilities = exponentials / total
    attended = jnp.einsum("BKgTL,BKLh->BTKgh", probabilities.astype(values.dtype), values)
    return attended.reshape(batch, length, query_heads, head_size)
