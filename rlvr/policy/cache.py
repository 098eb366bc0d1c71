"""The key/value cache: an explicit pytree, passed in and returned."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy.config import PolicyConfig


class LayerCache(NamedTuple):
    """Keys and values of one layer, each [S, K, L, h]; entry j of a slot is the token at position j."""

    key: jax.Array
    value: jax.Array


Cache = tuple[LayerCache, ...]

AXES = ("batch", "kv_heads", None, None)  # logical axes of each array


def make_cache(config: PolicyConfig, slots: int, length: int) -> Cache:
    """Returns an empty cache of `slots` sequences of up to `length` tokens."""
    # Heads before length: the decode products then batch over leading axes, without a transposed copy of the cache.
    shape = (slots, config.kv_heads, length, config.head_size)
    dtype = jnp.dtype(config.dtype)

    def empty() -> jax.Array:
        return constrain_cache(jnp.zeros(shape, dtype))

    return tuple(LayerCache(empty(), empty()) for _ in range(config.layers))


def constrain_cache(x: jax.Array) -> jax.Array:
    """Pins one cache array: slots over the batch axes, heads over the tensor axis."""
    return partition.constrain(x, *AXES)


def extend(layer: LayerCache, key: jax.Array, value: jax.Array, start: jax.Array) -> LayerCache:
    """Writes key and value [S, T, K, h] at positions start [S] onward."""

    def write(buffer: jax.Array, new: jax.Array) -> jax.Array:
        def row(slot: jax.Array, x: jax.Array, position: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(slot, x, (0, position, 0))

        return constrain_cache(jax.vmap(row)(buffer, new.swapaxes(1, 2).astype(buffer.dtype), start))

    return LayerCache(write(layer.key, key), write(layer.value, value))


def admit(cache: Cache, prompts: Cache, slots: jax.Array, source: jax.Array) -> Cache:
    """Copies prefilled rows into slots.

    Args:
        cache: the slots' cache, length L.
        prompts: cache of a prefill, length at most L.
        slots: [n] slot of each copy; an index of S or more copies nothing.
        source: [n] row of `prompts` for each copy.
    """

    def copy(buffer: jax.Array, prefix: jax.Array) -> jax.Array:
        rows = prefix[source]
        return constrain_cache(buffer.at[slots, :, : prefix.shape[2]].set(rows, mode="drop"))

    return jax.tree.map(copy, cache, prompts)
