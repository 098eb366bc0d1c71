"""The key/value cache: pages of a fixed number of tokens and a table of which row holds which, an explicit pytree.

Memory follows the tokens that are held, not rows times the longest sequence, and rows may share the pages of a common
prompt (vLLM, 2309.06180). The pages are split into X pools, one for each shard of the batch axes: a row's pages lie in
the pool of the shard that holds the row, so that no page ever crosses the mesh. Rows are numbered shard by shard.

    Y pages of a pool      P tokens of a page      N entries of a row in the table
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy.config import PolicyConfig

AXES = ("batch", None, "kv_heads", None, None)  # logical axes of each array of pages


class Pages(NamedTuple):
    """Keys and values of one layer, each [X, Y, K, P, h]."""

    key: jax.Array
    value: jax.Array


class Prefix(NamedTuple):
    """Keys and values of one layer of rows that were run without a cache, each [B, K, T, h]."""

    key: jax.Array
    value: jax.Array


class Cache(NamedTuple):
    """What rows of a forward pass see beside themselves.

    Attributes:
        layers: the pages of each layer.
        table: [X, B / X, N] int32; entry n of a row is the page of its positions n * P to n * P + P - 1. An entry of Y
            or more is no page: what is written there is dropped.
    """

    layers: tuple[Pages, ...]
    table: jax.Array


def make_pages(config: PolicyConfig, shards: int, pages: int, page_tokens: int) -> tuple[Pages, ...]:
    """Returns empty pages for every layer: `shards` pools of `pages` pages of `page_tokens` tokens."""
    # Heads before tokens: the products of attention then batch over leading axes, without a transposed copy.
    shape = (shards, pages, config.kv_heads, page_tokens, config.head_size)
    dtype = jnp.dtype(config.dtype)

    def empty() -> jax.Array:
        return constrain_pages(jnp.zeros(shape, dtype))

    return tuple(Pages(empty(), empty()) for _ in range(config.layers))


def page_bytes(config: PolicyConfig, page_tokens: int) -> int:
    """Returns the bytes of one page over all layers."""
    return 2 * config.layers * config.kv_heads * page_tokens * config.head_size * jnp.dtype(config.dtype).itemsize


def constrain_pages(x: jax.Array) -> jax.Array:
    """Pins one array of pages: pools over the batch axes, heads over the tensor axis."""
    return partition.constrain(x, *AXES)


def write(pages: Pages, table: jax.Array, key: jax.Array, value: jax.Array, positions: jax.Array) -> Pages:
    """Writes key and value [B, T, K, h] of tokens at positions [B, T]."""
    shards, rows, _ = table.shape
    tokens = rows * positions.shape[1]
    size = pages.key.shape[3]
    at = positions.reshape(shards, rows, -1)
    page = jnp.take_along_axis(table, at // size, axis=2, mode="fill", fill_value=pages.key.shape[1])

    def put(pool: jax.Array, page: jax.Array, offset: jax.Array, new: jax.Array) -> jax.Array:
        return pool.at[page, :, offset].set(new.astype(pool.dtype), mode="drop")

    def into(buffer: jax.Array, new: jax.Array) -> jax.Array:
        new = new.reshape(shards, tokens, *new.shape[2:])
        return constrain_pages(
            jax.vmap(put)(buffer, page.reshape(shards, tokens), (at % size).reshape(shards, tokens), new)
        )

    return Pages(into(pages.key, key), into(pages.value, value))


def read(pages: Pages, entries: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values of one page a row: [X, B / X, K, P, h] each, for entries [X, B / X] of the table."""

    def gather(buffer: jax.Array) -> jax.Array:
        return jax.vmap(lambda pool, page: pool.at[page].get(mode="clip"))(buffer, entries)

    return gather(pages.key), gather(pages.value)


def admit(
    layers: tuple[Pages, ...],
    prefixes: tuple[Prefix, ...],
    row: jax.Array,
    block: jax.Array,
    shard: jax.Array,
    page: jax.Array,
) -> tuple[Pages, ...]:
    """Copies prefilled tokens into pages, a page at a time.

    Args:
        layers: the pages.
        prefixes: of the prefill; T need not be a multiple of P.
        row, block: [n] int32 which row, and which of its pages, each copy comes from.
        shard, page: [n] int32 where each goes; a page of Y or more goes nowhere.
    """

    def copy(buffer: jax.Array, new: jax.Array) -> jax.Array:
        rows, heads, tokens, head_size = new.shape
        size = buffer.shape[3]
        blocks = math.ceil(tokens / size)
        new = jnp.pad(new, ((0, 0), (0, 0), (0, blocks * size - tokens), (0, 0)))
        new = new.reshape(rows, heads, blocks, size, head_size).swapaxes(1, 2)
        return constrain_pages(buffer.at[shard, page].set(new[row, block].astype(buffer.dtype), mode="drop"))

    return jax.tree.map(copy, layers, tuple(Pages(*prefix) for prefix in prefixes))


def duplicate(layers: tuple[Pages, ...], shard: jax.Array, source: jax.Array, target: jax.Array) -> tuple[Pages, ...]:
    """Copies pages `source` [n] to `target` [n] of the same pools `shard` [n]; a target of Y or more is dropped."""

    def copy(buffer: jax.Array) -> jax.Array:
        return constrain_pages(buffer.at[shard, target].set(buffer.at[shard, source].get(mode="clip"), mode="drop"))

    return jax.tree.map(copy, layers)
