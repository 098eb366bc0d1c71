"""Grouped-query attention (Ainslie et al., 2305.13245): one function for training, prefill and decode."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy import cache as cache_lib
from rlvr.policy.config import PolicyConfig
from rlvr.policy.parameters import fan_in, param
from rlvr.policy.rope import apply_rope


class Attention(nn.Module):
    """Causal attention over the row itself, or over a cache that the row extends."""

    config: PolicyConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        cache: cache_lib.LayerCache | None,
    ) -> tuple[jax.Array, cache_lib.LayerCache | None]:
        """Maps x [B, T, D] at consecutive positions [B, T] to ([B, T, D], the extended cache)."""
        c = self.config
        dtype = x.dtype
        heads = (c.dim, c.query_heads, c.head_size)
        kv_heads = (c.dim, c.kv_heads, c.head_size)
        w_query = param(self, "query", ("embed", "query_heads", None), heads, fan_in(0))
        w_key = param(self, "key", ("embed", "kv_heads", None), kv_heads, fan_in(0))
        w_value = param(self, "value", ("embed", "kv_heads", None), kv_heads, fan_in(0))
        out_shape = (c.query_heads, c.head_size, c.dim)
        w_out = param(self, "out", ("query_heads", None, "embed"), out_shape, fan_in(0, 1))

        query = jnp.einsum("BTD,DHh->BTHh", x, w_query.astype(dtype))
        key = jnp.einsum("BTD,DKh->BTKh", x, w_key.astype(dtype))
        value = jnp.einsum("BTD,DKh->BTKh", x, w_value.astype(dtype))
        query = apply_rope(partition.constrain(query, "batch", None, "query_heads", None), *angles)
        key = apply_rope(partition.constrain(key, "batch", None, "kv_heads", None), *angles)

        if cache is None:
            keys, values = key.swapaxes(1, 2), value.swapaxes(1, 2)  # [B, K, T, h]
        else:
            cache = cache_lib.extend(cache, key, value, positions[:, 0])
            keys, values = cache.key, cache.value  # [B, K, L, h]
        attended = attend(query, keys, values, positions)
        out = jnp.einsum("BTHh,HhD->BTD", attended, w_out.astype(dtype))
        return partition.constrain(out, "batch", None, None), cache


def attend(query: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array) -> jax.Array:
    """Softmax attention in float32.

    Args:
        query: [B, T, H, h].
        keys, values: [B, K, L, h]; entry j sits at position j.
        positions: [B, T]; a query sees the entries at its own position and before.

    Returns:
        [B, T, H, h], in the query's dtype.
    """
    batch, length, query_heads, head_size = query.shape
    kv_heads = keys.shape[1]
    grouped = query.reshape(batch, length, kv_heads, query_heads // kv_heads, head_size)
    scores = jnp.einsum("BTKgh,BKLh->BKgTL", grouped, keys, preferred_element_type=jnp.float32)
    visible = jnp.arange(keys.shape[2])[None, None, :] <= positions[:, :, None]  # [B, T, L]
    scores = jnp.where(visible[:, None, None], scores * head_size**-0.5, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    attended = jnp.einsum("BKgTL,BKLh->BTKgh", probabilities, values)
    return attended.reshape(batch, length, query_heads, head_size)
