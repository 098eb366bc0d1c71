"""Grouped-query attention (Ainslie et al., 2305.13245): one function for training, prefill and decode."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from rlvr import partition
from rlvr.policy import cache as cache_lib
from rlvr.policy.config import PolicyConfig
from rlvr.policy.kernels import rows_by_kernel
from rlvr.policy.norm import RmsNorm
from rlvr.policy.packed import BLOCK, CPU_BLOCK, Segments, attend_packed
from rlvr.policy.paged import attend_cache, attend_strips
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
        pages: cache_lib.AnyLayer | None,
        table: jax.Array | None,
        segments: Segments,
    ) -> tuple[jax.Array, cache_lib.AnyLayer | cache_lib.Prefix]:
        """Maps x [B, T, D] at positions [B, T] to ([B, T, D], the pages with this row, or the row itself without).

        Args:
            angles: of RoPE at the positions; None for none.
            pages, table: of the cache, if there is one; strips have no table.
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
        kept: cache_lib.AnyLayer | cache_lib.Prefix
        if pages is None:
            kept = cache_lib.Prefix(key.swapaxes(1, 2), value.swapaxes(1, 2))
            long = x.shape[1] > BLOCK
            flash = long and rows_by_kernel(c)
            block = CPU_BLOCK if long and partition.platform() == "cpu" else BLOCK
            attended = attend_packed(query, key, value, positions, segments, block=block, flash=flash, **form)
        elif isinstance(pages, cache_lib.Strips):
            kept = cache_lib.write_strips(pages, key, value, positions)
            attended = attend_strips(query, kept, positions, **form)
        else:
            assert table is not None
            kept = cache_lib.write(pages, table, key, value, positions)
            attended = attend_cache(query, kept, table, positions, **form)
        axes, shape = ("query_heads", None, "embed"), (c.query_heads, c.head_size, c.dim)
        out = linear(self, "out", attended, axes, shape, inputs=2, bias=c.out_bias)
        return partition.constrain(out, "batch", None, None), kept
