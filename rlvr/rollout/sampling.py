"""Drawing one token a row, and the log-probability under exactly the distribution that was drawn from."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlvr import keys

BLOCK = 128  # tokens summed as one step of the inverse CDF


def sample(
    logits: jax.Array, row_keys: jax.Array, position: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draws a token a row at `temperature`, or takes the most probable one where it is 0.

    One uniform a row and an inverse CDF, not a vocabulary-sized draw of Gumbel noise: measured 4 ms against 23 ms
    for 32 rows of 49,152 on two CPU cores.

    Args:
        logits: [S, V] float32.
        row_keys: [S] keys of the sequences.
        position: [S] int32 index of the token within its completion; folded into the key.
        temperature: scalar >= 0.

    Returns:
        (tokens [S] int32, logprobs [S] float32 under softmax(logits / temperature); softmax(logits) if greedy).
    """
    greedy = temperature == 0
    scaled = logits / jnp.where(greedy, 1.0, temperature)
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(keys.fold_in_rows(row_keys, position))
    top = jnp.max(scaled, axis=-1, keepdims=True)
    weights = jnp.exp(scaled - top)
    drawn = invert_cdf(weights, uniform)
    tokens = jnp.where(greedy, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)
    picked = jnp.take_along_axis(scaled - top, tokens[:, None], axis=-1)[:, 0]
    return tokens, picked - jnp.log(jnp.sum(weights, axis=-1))


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
