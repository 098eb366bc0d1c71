"""Drawing one token a row, and the log-probability under exactly the distribution that was drawn from."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlvr import keys

BLOCK = 128  # tokens summed as one step of the inverse CDF


class Sampling(NamedTuple):
    """What turns logits into the distribution that is drawn from: bias, temperature, top-k, top-p, min-p, in turn.

    Attributes:
        temperature: scalar >= 0; 0 is greedy, and then nothing is filtered.
        top_k: scalar int32; only the k most probable tokens (and those tied with the last of them); V or more for all.
        top_p: scalar; only the most probable tokens that together, of what top-k left, have at least this probability
            (nucleus sampling, 1904.09751).
        min_p: scalar; only tokens at least this much as probable as the most probable (2407.01082).
        bias: [V] float32 added to the logits, or None.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    bias: jax.Array | None = None


class Draw(NamedTuple):
    """One token a row.

    Attributes:
        tokens: [S] int32.
        logprobs: [S] float32 under the distribution drawn from; under softmax(logits + bias) if greedy.
        support: [S, V / 8] uint8, a bit for each token that could have been drawn, or None if nothing is filtered.
    """

    tokens: jax.Array
    logprobs: jax.Array
    support: jax.Array | None


def sample(
    logits: jax.Array, row_keys: jax.Array, position: jax.Array, sampling: Sampling, *, filtered: bool = False
) -> Draw:
    """Draws a token a row, or takes the most probable one where the temperature is 0.

    One uniform a row and an inverse CDF, not a vocabulary-sized draw of Gumbel noise: measured 4 ms against 23 ms
    for 32 rows of 49,152 on two CPU cores.

    Args:
        logits: [S, V] float32.
        row_keys: [S] keys of the sequences.
        position: [S] int32 index of the token within its completion; folded into the key.
        filtered: whether top_k, top_p and min_p are looked at.
    """
    if sampling.bias is not None:
        logits += sampling.bias[None, :]
    greedy = sampling.temperature == 0
    scaled = logits / jnp.where(greedy, 1.0, sampling.temperature)
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(keys.fold_in_rows(row_keys, position))
    scaled -= jnp.max(scaled, axis=-1, keepdims=True)
    weights = jnp.exp(scaled)
    support = None
    if filtered:
        kept = greedy | choose_support(scaled, weights, sampling)
        weights = jnp.where(kept, weights, 0.0)
        support = jnp.packbits(kept, axis=-1)
    drawn = invert_cdf(weights, uniform)
    tokens = jnp.where(greedy, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)
    picked = jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    return Draw(tokens, picked - jnp.log(jnp.sum(weights, axis=-1)), support)


def choose_support(scaled: jax.Array, weights: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns which tokens pass the filters, [S, V] bool: at least the most probable.

    Args:
        scaled: [S, V] logits over the temperature, the largest of a row being 0.
        weights: exp(scaled).
    """
    order = _sortable(scaled)
    kept = order >= _largest_with(order, jnp.ones_like(weights), sampling.top_k.astype(jnp.float32)[None])
    remaining = jnp.where(kept, weights, 0.0)
    kept &= order >= _largest_with(order, remaining, sampling.top_p * jnp.sum(remaining, axis=-1))
    return kept & (weights >= sampling.min_p) & ((weights > 0) | (scaled == 0))


def _sortable(x: jax.Array) -> jax.Array:
    """Maps float32 to uint32 of the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    top = jnp.uint32(1 << 31)
    return jnp.where(bits >= top, ~bits, bits | top)


def _largest_with(order: jax.Array, amounts: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns [S, 1]: the largest threshold at or above which a row still has the wanted amount; 0 where none has.

    Found bit by bit: 32 sums over the row instead of a sort of it.

    Args:
        order: [S, V] uint32.
        amounts: [S, V] of each entry; wanted: [S] or [1].
    """

    def one(i: jax.Array, threshold: jax.Array) -> jax.Array:
        higher = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        there = jnp.sum(jnp.where(order >= higher, amounts, 0.0), axis=-1, keepdims=True)
        return jnp.where(there >= wanted[:, None], higher, threshold)

    return jax.lax.fori_loop(0, 32, one, jnp.zeros((order.shape[0], 1), jnp.uint32))


def invert_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Returns the index at which the cumulative sum of weights passes uniform * total, never one of weight zero.

    In two levels (blocks, then within the block), so that rounding grows with sqrt(V), not V.

    Args:
        weights: [S, V] >= 0, some positive.
        uniform: [S] in [0, 1).
    """
    rows, vocab = weights.shape
    blocks = -(-vocab // BLOCK)
    weights = jnp.pad(weights, ((0, 0), (0, blocks * BLOCK - vocab))).reshape(rows, blocks, BLOCK)
    sums = jnp.sum(weights, axis=-1)
    ends = jnp.cumsum(sums, axis=-1)
    target = uniform * ends[:, -1]
    block = _first_past(ends, target, sums)
    inside = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
    start = jnp.take_along_axis(ends - sums, block[:, None], axis=1)[:, 0]
    return block * BLOCK + _first_past(jnp.cumsum(inside, axis=-1), target - start, inside)


def _first_past(ends: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """First index whose cumulative sum exceeds the target; the last of positive weight if rounding left none."""
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    first = jnp.sum(ends <= target[:, None], axis=-1)
    # target - start can come out a rounding error below zero: first is then 0, which may weigh nothing.
    lowest = jnp.argmax(weights > 0, axis=-1)
    return jnp.clip(first, lowest, last)
