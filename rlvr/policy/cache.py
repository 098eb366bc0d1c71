"""The key/value cache: pages of a fixed number of tokens and a table of which row holds which, an explicit pytree.

Memory follows the tokens that are held, not rows times the longest sequence, and rows may share the pages of a common
prompt (vLLM, 2309.06180). The pages are split into X pools, one for each shard of the batch axes: a row's pages lie in
the pool of the shard that holds the row, so that no page ever crosses the mesh. Rows are numbered shard by shard.

    Y pages of a pool      P tokens of a page      N entries of a row in the table      W width of a head's vector

W is h, and on TPU h in whole tiles of 128 lanes, zeros past h: that is what a tile takes anyway, and arrays that are
narrower get a layout of their own, from and into which the whole cache is copied in every dispatch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy.config import PolicyConfig
from rlvr.policy.kernels import cache_by_kernel

LANES = 128


class Pages(NamedTuple):
    """Keys and values of one layer, each [X, Y, K, P, W]."""

    key: jax.Array
    value: jax.Array


class JoinedPages(NamedTuple):
    """The same as the kernel for TPUs reads it: of every token the key of its first head, its value, the second key...

    Attributes:
        both: [X, Y, P, 2K, W].
    """

    both: jax.Array


AnyPages = Pages | JoinedPages


class Strips(NamedTuple):
    """Keys and values of one layer without pages: each row's own, one after the other, each [B, K, L, h].

    For programs whose shapes never change: nothing is looked up, and nothing can be shared.
    """

    key: jax.Array
    value: jax.Array


AnyLayer = AnyPages | Strips

# Logical axes of the arrays of pages. In `Pages` heads are before tokens: the products of attention then batch over
# leading axes, without a transposed copy.
AXES: dict[type[AnyPages], partition.Axes] = {
    Pages: ("batch", None, "kv_heads", None, None),
    JoinedPages: ("batch", None, None, "kv_heads", None),
}


class Prefix(NamedTuple):
    """Keys and values of one layer of rows that were run without a cache, each [B, K, T, h]."""

    key: jax.Array
    value: jax.Array


class Cache(NamedTuple):
    """What rows of a forward pass see beside themselves.

    Attributes:
        layers: the pages, or the strips, of each layer.
        table: [X, B / X, N] int32; entry n of a row is the page of its positions n * P to n * P + P - 1. An entry of Y
            or more is no page: what is written there is dropped. None for strips.
    """

    layers: tuple[AnyLayer, ...]
    table: jax.Array | None


def pages_type(config: PolicyConfig) -> type[AnyPages]:
    """Returns in which form a policy's pages are kept: the one that its attention over the cache reads."""
    return JoinedPages if cache_by_kernel(config) else Pages


def make_pages(config: PolicyConfig, shards: int, pages: int, page_tokens: int) -> tuple[AnyPages, ...]:
    """Returns empty pages for every layer: `shards` pools of `pages` pages of `page_tokens` tokens."""
    form = pages_type(config)
    shape: tuple[int, ...] = (shards, pages, config.kv_heads, page_tokens, head_width(config))
    if form is JoinedPages:
        shape = (shards, pages, page_tokens, 2 * config.kv_heads, head_width(config))

    def empty() -> jax.Array:
        return partition.constrain(jnp.zeros(shape, jnp.dtype(config.dtype)), *AXES[form])

    return tuple(form(*(empty() for _ in form._fields)) for _ in range(config.layers))


def head_width(config: PolicyConfig) -> int:
    """Returns W."""
    return -(-config.head_size // LANES) * LANES if partition.platform() == "tpu" else config.head_size


def page_bytes(config: PolicyConfig, page_tokens: int) -> int:
    """Returns the bytes of one page over all layers."""
    return 2 * config.layers * config.kv_heads * page_tokens * head_width(config) * jnp.dtype(config.dtype).itemsize


def widen(x: jax.Array, width: int) -> jax.Array:
    """Extends [..., h] to [..., W] by zeros."""
    if x.shape[-1] == width:
        return x
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, width - x.shape[-1]),))


def write(pages: AnyPages, table: jax.Array, key: jax.Array, value: jax.Array, positions: jax.Array) -> AnyPages:
    """Writes key and value [B, T, K, h] of tokens at positions [B, T]."""
    shards, rows, _ = table.shape
    tokens = rows * positions.shape[1]
    size = pages.both.shape[2] if isinstance(pages, JoinedPages) else pages.key.shape[3]
    at = positions.reshape(shards, rows, -1)
    page = jnp.take_along_axis(table, at // size, axis=2, mode="fill", fill_value=pages[0].shape[1])

    def put_joined(pool: jax.Array, page: jax.Array, offset: jax.Array, new: jax.Array) -> jax.Array:
        return pool.at[page, offset].set(new, mode="drop")

    def put(pool: jax.Array, page: jax.Array, offset: jax.Array, new: jax.Array) -> jax.Array:
        if partition.platform() != "tpu":
            return pool.at[page, :, offset].set(new, mode="drop")
        # Head by head: XLA TPU scatters windows that lie together in place, and others into a transposed copy of the
        # whole pool.
        heads = jnp.arange(pool.shape[1])
        return pool.at[page[:, None], heads[None, :], offset[:, None]].set(new, mode="drop")

    def into(buffer: jax.Array, new: jax.Array) -> jax.Array:
        new = widen(new, buffer.shape[-1]).astype(buffer.dtype).reshape(shards, tokens, -1, buffer.shape[-1])
        where = (page.reshape(shards, tokens), (at % size).reshape(shards, tokens))
        form = put_joined if isinstance(pages, JoinedPages) else put
        return partition.constrain(jax.vmap(form)(buffer, *where, new), *AXES[type(pages)])

    if isinstance(pages, JoinedPages):
        return JoinedPages(into(pages.both, join(key, value)))
    return Pages(into(pages.key, key), into(pages.value, value))


def join(key: jax.Array, value: jax.Array) -> jax.Array:
    """[..., K, h] each -> [..., 2K, h]: the first key, the first value, the second key, ..."""
    return jnp.stack((key, value), axis=-2).reshape(*key.shape[:-2], -1, key.shape[-1])


def read(pages: Pages, entries: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values of one page a row: [X, B / X, K, P, W] each, for entries [X, B / X] of the table."""

    def gather(buffer: jax.Array) -> jax.Array:
        return jax.vmap(lambda pool, page: pool.at[page].get(mode="clip"))(buffer, entries)

    return gather(pages.key), gather(pages.value)


def make_strips(prefix: Prefix, samples: int, length: int) -> Strips:
    """Returns the strips of `samples` rows for each row of a prefill, one after the other, with room for L tokens."""

    def one(x: jax.Array) -> jax.Array:
        room = jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))
        return jnp.repeat(room, samples, axis=0)

    return Strips(one(prefix.key), one(prefix.value))


def write_strips(strips: Strips, key: jax.Array, value: jax.Array, positions: jax.Array) -> Strips:
    """Writes key and value [B, 1, K, h] of one token a row, at positions [B, 1]."""
    # A choice over the whole strip, not a scatter, which XLA CPU makes a loop over the rows of.
    here = (jnp.arange(strips.key.shape[2])[None, :] == positions)[:, None, :, None]

    def into(buffer: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(here, new.swapaxes(1, 2).astype(buffer.dtype), buffer)

    return Strips(into(strips.key, key), into(strips.value, value))


def admit(
    layers: tuple[AnyPages, ...],
    prefixes: tuple[Prefix, ...],
    row: jax.Array,
    block: jax.Array,
    shard: jax.Array,
    page: jax.Array,
) -> tuple[AnyPages, ...]:
    """Copies prefilled tokens into pages, a page at a time.

    Args:
        layers: the pages.
        prefixes: of the prefill; T need not be a multiple of P.
        row, block: [n] int32 which row, and which of its pages, each copy comes from.
        shard, page: [n] int32 where each goes; a page of Y or more goes nowhere.
    """

    def copy(buffer: jax.Array, new: jax.Array, form: type[AnyPages]) -> jax.Array:
        new = widen(new, buffer.shape[-1])
        rows, heads, tokens, width = new.shape
        size = buffer.shape[2 if form is JoinedPages else 3]
        blocks = math.ceil(tokens / size)
        new = jnp.pad(new, ((0, 0), (0, 0), (0, blocks * size - tokens), (0, 0)))
        new = new.reshape(rows, heads, blocks, size, width).swapaxes(1, 2)  # [B, blocks, heads, P, W]
        if form is JoinedPages:
            new = new.swapaxes(2, 3)
        new = buffer.at[shard, page].set(new[row, block].astype(buffer.dtype), mode="drop")
        return partition.constrain(new, *AXES[form])

    def one(pages: AnyPages, prefix: Prefix) -> AnyPages:
        if isinstance(pages, JoinedPages):
            both = join(*(x.swapaxes(1, 2) for x in prefix)).swapaxes(1, 2)  # [B, 2K, T, h]
            return JoinedPages(copy(pages.both, both, JoinedPages))
        return Pages(copy(pages.key, prefix.key, Pages), copy(pages.value, prefix.value, Pages))

    return tuple(one(*pair) for pair in zip(layers, prefixes, strict=True))


def duplicate(
    layers: tuple[AnyPages, ...], shard: jax.Array, source: jax.Array, target: jax.Array
) -> tuple[AnyPages, ...]:
    """Copies pages `source` [n] to `target` [n] of the same pools `shard` [n]; a target of Y or more is dropped."""

    def copy(buffer: jax.Array, form: type[AnyPages]) -> jax.Array:
        new = buffer.at[shard, target].set(buffer.at[shard, source].get(mode="clip"), mode="drop")
        return partition.constrain(new, *AXES[form])

    return tuple(type(pages)(*(copy(buffer, type(pages)) for buffer in pages)) for pages in layers)
