"""Attention within packed rows, for training: what sees what, and a softmax by blocks that skips what nobody sees.

Nothing of shape [T, T] is kept for a long row: the softmax is computed online over blocks of keys (Milakov and
Gimelshein, 1805.02867), and the backward pass computes the blocks of probabilities again from the saved normaliser
(FlashAttention: Dao et al., 2205.14135). It is written here, in JAX and for TPUs as kernels (`rlvr.policy.flash`),
because JAX's own kernels express a shared prompt only as a mask of shape [T, T].
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from rlvr.policy.flash import attend_flash, make_marks

BLOCK = 128  # queries and keys of one block; rows of up to so many tokens are one dense product
CPU_BLOCK = 64  # of longer rows on CPU: of a shared prompt and short completions less of a block is unseen
NEVER = float(np.finfo(np.float32).min)


class Segments(NamedTuple):
    """Which tokens of a packed row belong together.

    A token sees those of its own segment and those of its prefix, each up to its own position.

    Attributes:
        own: [B, T] int32 number of the token's segment, unique in the row; -1 in padding, which sees nothing.
        prefix: [B, T] int32 number of the segment that the token's own one continues; the own one's if there is none.
    """

    own: jax.Array
    prefix: jax.Array


class Tokens(NamedTuple):
    """What decides on visibility: positions and segments, each [B, T]."""

    positions: jax.Array
    own: jax.Array
    prefix: jax.Array


def visible(queries: Tokens, keys: Tokens, window: int) -> jax.Array:
    """Returns [B, queries, keys]: which keys each query sees; `window` tokens, its own included, or all for 0."""
    own = queries.own[:, :, None]
    seen = (keys.own[:, None, :] == own) | (keys.own[:, None, :] == queries.prefix[:, :, None])
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    seen &= (distance >= 0) & (own >= 0)
    return seen & (distance < window) if window else seen


def attend_packed(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    positions: jax.Array,
    segments: Segments,
    *,
    scale: float,
    window: int = 0,
    sinks: jax.Array | None = None,
    block: int = BLOCK,
    flash: bool = False,
) -> jax.Array:
    """Softmax attention of rows to themselves, in float32.

    Args:
        query: [B, T, H, h].
        key, value: [B, T, K, h].
        positions: [B, T], which need not be the places in the row.
        scale: the scores are multiplied by it.
        window: see `visible`.
        sinks: [H] logits, not scaled, that take their part of each head's softmax and carry no value; or None.
        block: queries and keys of one block.
        flash: whether rows longer than a block are attended by the kernels of `rlvr.policy.flash`.

    Returns:
        [B, T, H, h], in the query's dtype; anything finite in padding.
    """
    batch, length, query_heads, head_size = query.shape
    kv_heads = key.shape[2]
    shape = (kv_heads, query_heads // kv_heads)
    # Without sinks the softmax starts empty: a sink of weight exp(NEVER) = 0.
    sink = jnp.full(shape, NEVER) if sinks is None else sinks.astype(jnp.float32).reshape(shape)
    query = query.reshape(batch, length, *shape, head_size)
    tokens = Tokens(positions, *segments)
    if length <= block:
        out = checkpoint_name(_attend_dense(query, key, value, tokens, sink, scale, window), "attended")
        return out.reshape(batch, length, query_heads, head_size)
    query, key, value = (_pad(x, block) for x in (query, key, value))
    tokens = Tokens(*(_pad(x, block) for x in tokens))
    if flash:
        block = whole_blocks(query.shape[1], block)
        heads_first = (jnp.moveaxis(x, 1, -2) for x in (query, key, value))
        out = attend_flash(*heads_first, make_marks(*tokens), _seen(tokens, window, block), sink, scale, window)
        return jnp.moveaxis(out, -2, 1)[:, :length].reshape(batch, length, query_heads, head_size)
    query, key, value = (_split(x, block) for x in (query, key, value))
    tokens = Tokens(*(_split(x, block) for x in tokens))
    out = _attend_blocks(query, key, value, tokens, sink, scale, window)
    return _join(out)[:, :length].reshape(batch, length, query_heads, head_size)


def count_pairs(positions: jax.Array, segments: Segments, *, window: int = 0, block: int = BLOCK) -> jax.Array:
    """Returns how many pairs of a block of queries and one of keys `attend_packed` visits in each head."""
    tokens = Tokens(*(_split(_pad(x, block), block) for x in (positions, *segments)))
    return _pairs(tokens, window)[2]


def _attend_dense(
    query: jax.Array, key: jax.Array, value: jax.Array, tokens: Tokens, sink: jax.Array, scale: float, window: int
) -> jax.Array:
    scores = jnp.einsum("BTKgh,BLKh->BKgTL", query, key, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(visible(tokens, tokens, window)[:, None, None], scores, NEVER)
    sink = sink[None, :, :, None, None]
    largest = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sink))
    exponentials = jnp.exp(scores - largest)
    total = jnp.sum(exponentials, axis=-1, keepdims=True) + jnp.exp(sink - largest)
    return jnp.einsum("BKgTL,BLKh->BTKgh", (exponentials / total).astype(value.dtype), value)


def whole_blocks(length: int, block: int = BLOCK) -> int:
    """Returns the size of the kernels' blocks: the largest of 4, 2 and 1 blocks that divides the length."""
    return next(size for size in (4 * block, 2 * block, block) if length % size == 0)


def _seen(tokens: Tokens, window: int, block: int) -> jax.Array:
    """Returns [B, query blocks, key blocks]: the pairs of which something is seen, of each row."""
    blocks = Tokens(*(_split(x, block) for x in tokens))

    def row(queries: Tokens) -> jax.Array:
        return jax.vmap(lambda keys: jnp.any(visible(queries, keys, window), axis=(1, 2)))(blocks)

    return jnp.moveaxis(jax.lax.map(row, blocks), 2, 0)


def _pad(x: jax.Array, block: int) -> jax.Array:
    """Extends [B, T, ...] to whole blocks; ids and positions by -1, which is padding."""
    widths = ((0, 0), (0, -x.shape[1] % block)) + ((0, 0),) * (x.ndim - 2)
    return jnp.pad(x, widths, constant_values=-1 if x.ndim == 2 else 0)


def _split(x: jax.Array, block: int) -> jax.Array:
    """[B, T, heads..., h] -> [blocks, B, heads..., block, h]; [B, T] -> [blocks, B, block]."""
    x = x.reshape(x.shape[0], -1, block, *x.shape[2:]).swapaxes(0, 1)
    return jnp.moveaxis(x, 2, -2) if x.ndim > 3 else x


def _join(x: jax.Array) -> jax.Array:
    """[blocks, B, heads..., block, h] -> [B, T, heads..., h]."""
    x = jnp.moveaxis(x, -2, 2).swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _pairs(tokens: Tokens, window: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (query blocks, key blocks, number of pairs): those of which something is seen, by query block."""
    count = tokens.own.shape[0]

    def row(queries: Tokens) -> jax.Array:
        return jax.vmap(lambda keys: jnp.any(visible(queries, keys, window)))(tokens)

    seen = jax.lax.map(row, tokens)  # [query blocks, key blocks]
    first, second = jnp.nonzero(seen, size=count * count, fill_value=0)
    return first, second, jnp.sum(seen, dtype=jnp.int32)


def _at(x: Any, i: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), x)


def _put(x: jax.Array, value: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, value, i, 0)


def _scores(
    query: jax.Array, key: jax.Array, queries: Tokens, keys: Tokens, scale: float, window: int
) -> tuple[jax.Array, jax.Array]:
    """Returns (scores [B, K, g, block, block], which of them count)."""
    scores = jnp.einsum("BKgqh,BKch->BKgqc", query, key, preferred_element_type=jnp.float32) * scale
    return scores, visible(queries, keys, window)[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend_blocks(
    query: jax.Array, key: jax.Array, value: jax.Array, tokens: Tokens, sink: jax.Array, scale: float, window: int
) -> jax.Array:
    """Blocks of queries [n, B, K, g, block, h], keys and values [n, B, K, block, h] -> [n, B, K, g, block, h]."""
    return _forward(query, key, value, tokens, sink, scale, window)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, tokens: Tokens, sink: jax.Array, scale: float, window: int
) -> tuple[jax.Array, Any]:
    first, second, count = _pairs(tokens, window)

    def body(n: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        i, j = first[n], second[n]
        scores, seen = _scores(_at(query, i), _at(key, j), _at(tokens, i), _at(tokens, j), scale, window)
        largest, total, out = (_at(x, i) for x in carry)
        new = jnp.maximum(largest, jnp.max(jnp.where(seen, scores, NEVER), axis=-1))
        exponentials = jnp.where(seen, jnp.exp(scores - new[..., None]), 0.0)
        shrink = jnp.exp(largest - new)
        part = jnp.einsum(
            "BKgqc,BKch->BKgqh", exponentials.astype(value.dtype), _at(value, j), preferred_element_type=jnp.float32
        )
        total = total * shrink + jnp.sum(exponentials, axis=-1)
        values = (new, total, out * shrink[..., None] + part)
        return tuple(_put(x, v, i) for x, v in zip(carry, values, strict=True))  # type: ignore[return-value]

    largest = jnp.broadcast_to(sink[None, None, :, :, None], query.shape[:-1])
    # What has seen nothing yet weighs nothing, but for a sink.
    total = jnp.where(largest > NEVER, 1.0, 0.0)
    largest, total, out = jax.lax.fori_loop(0, count, body, (largest, total, jnp.zeros(query.shape, jnp.float32)))
    total = jnp.where(total > 0, total, 1.0)  # padding has seen nothing
    out = checkpoint_name((out / total[..., None]).astype(query.dtype), "attended")
    normaliser = checkpoint_name(largest + jnp.log(total), "attended")
    return out, (query, key, value, tokens, sink, out, normaliser)


def _backward(scale: float, window: int, saved: Any, bar: jax.Array) -> tuple[Any, ...]:
    query, key, value, tokens, sink, out, normaliser = saved
    first, second, count = _pairs(tokens, window)
    drop = jnp.sum(bar.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)  # [n, B, K, g, block]

    def body(n: jax.Array, bars: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        i, j = first[n], second[n]
        q, k, v, own_bar = _at(query, i), _at(key, j), _at(value, j), _at(bar, i)
        scores, seen = _scores(q, k, _at(tokens, i), _at(tokens, j), scale, window)
        p = jnp.where(seen, jnp.exp(scores - _at(normaliser, i)[..., None]), 0.0)
        by_p = jnp.einsum("BKgqh,BKch->BKgqc", own_bar, v, preferred_element_type=jnp.float32)
        by_score = (p * (by_p - _at(drop, i)[..., None]) * scale).astype(query.dtype)
        p = p.astype(value.dtype)
        steps = (
            jnp.einsum("BKgqc,BKch->BKgqh", by_score, k, preferred_element_type=jnp.float32),
            jnp.einsum("BKgqc,BKgqh->BKch", by_score, q, preferred_element_type=jnp.float32),
            jnp.einsum("BKgqc,BKgqh->BKch", p, own_bar, preferred_element_type=jnp.float32),
        )
        return tuple(  # type: ignore[return-value]
            _put(total, _at(total, at) + step, at) for total, step, at in zip(bars, steps, (i, j, j), strict=True)
        )

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (query, key, value))
    by_query, by_key, by_value = jax.lax.fori_loop(0, count, body, zeros)
    by_sink = -jnp.sum(jnp.exp(sink[None, None, :, :, None] - normaliser) * drop, axis=(0, 1, 4))
    no_gradient = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), tokens)
    return (
        by_query.astype(query.dtype),
        by_key.astype(key.dtype),
        by_value.astype(value.dtype),
        no_gradient,
        by_sink,
    )


_attend_blocks.defvjp(_forward, _backward)
