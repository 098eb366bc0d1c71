"""Attention over the pages of a cache: a page at a time in JAX, or by JAX's ragged paged attention kernel for TPUs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy.cache import AXES, AnyPages, JoinedPages, Pages, Strips, read, widen

BLOCK = 256  # tokens that the kernel fetches at a time; of a sequence's last block some in vain


def attend_cache(query: jax.Array, pages: AnyPages, table: jax.Array, positions: jax.Array, **form: Any) -> jax.Array:
    """Softmax attention over the pages, in the form that they are kept for. See `attend_pages`."""
    if isinstance(pages, JoinedPages):
        return attend_joined(query, pages, table, positions, **form)
    return attend_pages(query, pages, table, positions, **form)


def attend_pages(
    query: jax.Array,
    pages: Pages,
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
    kv_heads, size, width = pages.key.shape[2:]
    lowest = jnp.finfo(jnp.float32).min
    grouped = widen(query, width).astype(pages.key.dtype)
    grouped = grouped.reshape(shards, rows, length, kv_heads, query_heads // kv_heads, width)
    at = positions.reshape(shards, rows, 1, 1, length, 1)
    first = jnp.maximum(jnp.min(positions) - window + 1, 0) // size if window else 0
    end = jnp.max(positions) // size + 1

    def one(block: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        largest, total, attended = sums
        keys, values = read(pages, jax.lax.dynamic_index_in_dim(table, block, axis=2, keepdims=False))
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
    start = (jnp.full(heads, lowest), jnp.zeros(heads), jnp.zeros((*heads, width)))
    largest, total, attended = jax.lax.fori_loop(first, end, one, start)
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(1, 1, kv_heads, query_heads // kv_heads, 1)
        higher = jnp.maximum(largest, sink)
        total = total * jnp.exp(largest - higher) + jnp.exp(sink - higher)
        attended = attended * jnp.exp(largest - higher)[..., None]
    attended = attended / total[..., None]
    attended = jnp.moveaxis(attended[..., :head_size], 4, 2)
    return attended.reshape(batch, length, query_heads, head_size).astype(query.dtype)


def attend_strips(
    query: jax.Array,
    strips: Strips,
    positions: jax.Array,
    *,
    scale: float,
    window: int = 0,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """The same over strips: one dense product a row. See `attend_pages`."""
    batch, length, query_heads, head_size = query.shape
    kv_heads, room = strips.key.shape[1:3]
    grouped = query.astype(strips.key.dtype).reshape(batch, length, kv_heads, query_heads // kv_heads, head_size)
    scores = jnp.einsum("BTKgh,BKLh->BKgTL", grouped, strips.key, preferred_element_type=jnp.float32) * scale
    distance = positions[:, :, None] - jnp.arange(room)[None, None, :]
    visible = (distance >= 0) & (distance < window) if window else distance >= 0
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(1, kv_heads, query_heads // kv_heads, 1, 1)
        largest = jnp.maximum(largest, sink)
    weights = jnp.where(visible[:, None, None], jnp.exp(scores - largest), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sink - largest)
    values = strips.value
    attended = jnp.einsum(
        "BKgTL,BKLh->BTKgh", (weights / total).astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return attended.reshape(batch, length, query_heads, head_size).astype(query.dtype)


def attend_joined(
    query: jax.Array,
    pages: JoinedPages,
    table: jax.Array,
    positions: jax.Array,
    *,
    scale: float,
    window: int = 0,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """The same by the kernel: each row reads its own pages only, up to its own end. See `attend_pages`.

    Fully manual over the mesh: a shard holds its rows and their pages, and whole groups of heads.
    """
    assert sinks is None
    mesh = partition.current_mesh()

    def shard(query: jax.Array, both: jax.Array, table: jax.Array, positions: jax.Array) -> jax.Array:
        return _run_kernel(query, both, table, positions, scale, window)

    if mesh is None:
        return shard(query, pages.both, table, positions)
    heads = partition.spec(("batch", None, "query_heads", None))
    rows = partition.spec(("batch",))
    # The kernel does not say over which axes its result varies, which the check wants.
    return jax.shard_map(
        shard, in_specs=(heads, partition.spec(AXES[JoinedPages]), rows, rows), out_specs=heads, check_vma=False
    )(query, pages.both, table, positions)  # fmt: skip


def _run_kernel(
    query: jax.Array, both: jax.Array, table: jax.Array, positions: jax.Array, scale: float, window: int
) -> jax.Array:
    batch, length, heads, head_size = query.shape
    # Here: only programs for TPUs need it.
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    shards, count, size, _, width = both.shape
    # Pages of all pools in one row. What is no page is never read but by rows that are empty or past their end.
    entries = jnp.minimum(table, count - 1) + count * jnp.arange(shards)[:, None, None]
    out = ragged_paged_attention(
        widen(query, width).reshape(batch * length, heads, width).astype(both.dtype),
        both.reshape(shards * count, *both.shape[2:]),
        positions[:, -1] + 1,
        entries.reshape(batch, -1),
        length * jnp.arange(batch + 1, dtype=jnp.int32),
        jnp.array([batch], jnp.int32),
        sm_scale=scale,
        sliding_window=window or None,
        num_kv_pages_per_block=min(max(BLOCK // size, 1), table.shape[2]),
        # Rows of one query each: a larger block computes all its queries against the keys of each.
        num_queries_per_block=1,
    )
    return out.reshape(batch, length, heads, width)[..., :head_size].astype(query.dtype)
