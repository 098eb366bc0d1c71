"""Grouped-query attention (Ainslie et al., 2305.13245): one function for training, prefill and decode."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy import cache as cache_lib
from rlvr.policy.config import PolicyConfig
from rlvr.policy.norm import RmsNorm
from rlvr.policy.packed import Segments, attend_packed
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
        pages: cache_lib.Pages | None,
        table: jax.Array | None,
        segments: Segments,
    ) -> tuple[jax.Array, cache_lib.Pages | cache_lib.Prefix]:
        """Maps x [B, T, D] at positions [B, T] to ([B, T, D], the pages with this row, or the row itself without).

        Args:
            angles: of RoPE at the positions; None for none.
            pages, table: of the cache, if there is one.
            segments: which tokens of a row see each other, without a cache.
        """
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

        sinks = param(self, "sinks", ("query_heads",), (c.query_heads,), zeros) if c.sinks else None
        scale = c.attention_scale or c.head_size**-0.5
        form: Any = {"scale": scale, "window": self.window, "sinks": sinks}
        kept: cache_lib.Pages | cache_lib.Prefix
        if pages is None or table is None:
            kept = cache_lib.Prefix(key.swapaxes(1, 2), value.swapaxes(1, 2))
            attended = attend_packed(query, key, value, positions, segments, **form)
        else:
            kept = cache_lib.write(pages, table, key, value, positions)
            attended = attend_pages(query, kept, table, positions, **form)
        axes, shape = ("query_heads", None, "embed"), (c.query_heads, c.head_size, c.dim)
        out = linear(self, "out", attended, axes, shape, inputs=2, bias=c.out_bias)
        return partition.constrain(out, "batch", None, None), kept


def attend_pages(
    query: jax.Array,
    pages: cache_lib.Pages,
    table: jax.Array,
    positions: jax.Array,
    *,
    scale: float,
    window: int = 0,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention over the pages of a cache, in float32: one page a row at a time, from the first that any row
    sees to the last.

    A running softmax (Milakov and Gimelshein, 1805.02867). A page that a row does not see leaves its sums as they
    are, to the bit, so a row's result does not depend on how far the others have got.

    Args:
        query: [B, T, H, h] of tokens whose keys and values are in the pages.
        table: see `rlvr.policy.cache.Cache`.
        positions: [B, T]; a query at i sees what is at j with 0 <= i - j, and i - j < window where there is one.
        scale: the scores are multiplied by it.
        sinks: [H] logits, not scaled, that take their part of each head's softmax and carry no value; or None.

    Returns:
        [B, T, H, h], in the query's dtype.
    """
    batch, length, query_heads, head_size = query.shape
    shards, rows, _ = table.shape
    kv_heads, size = pages.key.shape[2:4]
    lowest = jnp.finfo(jnp.float32).min
    grouped = query.reshape(shards, rows, length, kv_heads, query_heads // kv_heads, head_size).astype(pages.key.dtype)
    at = positions.reshape(shards, rows, 1, 1, length, 1)
    first = jnp.maximum(jnp.min(positions) - window + 1, 0) // size if window else 0
    end = jnp.max(positions) // size + 1

    def one(block: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        largest, total, attended = sums
        keys, values = cache_lib.read(pages, jax.lax.dynamic_index_in_dim(table, block, axis=2, keepdims=False))
        scores = jnp.einsum("XrTKgh,XrKPh->XrKgTP", grouped, keys, preferred_element_type=jnp.float32)
        distance = at - (block * size + jnp.arange(size)).reshape(1, 1, 1, 1, 1, size)
        visible = (distance >= 0) & (distance < window) if window else distance >= 0
        scores = jnp.where(visible, scores * scale, lowest)
        higher = jnp.maximum(largest, jnp.max(scores, axis=-1))
        weights = jnp.where(visible, jnp.exp(scores - higher[..., None]), 0.0)
        shrink = jnp.exp(largest - higher)
        part = jnp.einsum(
            "XrKgTP,XrKPh->XrKgTh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
        )
        return higher, total * shrink + jnp.sum(weights, axis=-1), attended * shrink[..., None] + part

    heads = (shards, rows, kv_heads, query_heads // kv_heads, length)
    start = (jnp.full(heads, lowest), jnp.zeros(heads), jnp.zeros((*heads, head_size)))
    largest, total, attended = jax.lax.fori_loop(first, end, one, start)
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(1, 1, kv_heads, query_heads // kv_heads, 1)
        higher = jnp.maximum(largest, sink)
        total = total * jnp.exp(largest - higher) + jnp.exp(sink - higher)
        attended = attended * jnp.exp(largest - higher)[..., None]
    attended = attended / total[..., None]
    return jnp.moveaxis(attended, 4, 2).reshape(batch, length, query_heads, head_size).astype(query.dtype)
