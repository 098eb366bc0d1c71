"""Parameters with their logical axes declared beside them, while the tree stays a plain dict of arrays.

A tree may hold low-rank adapters (`rlvr.policy.lora`): beside the matrix `query` then stand `query_lora_a` and
`query_lora_b`, and whoever uses the matrix adds their product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlvr.partition import Axes

BIAS, LORA_A, LORA_B = "_bias", "_lora_a", "_lora_b"

# While set, `param` notes the axes of each parameter it declares. A recorder instead of boxed metadata keeps the
# parameter tree free of wrappers, so that it can be saved, mapped and donated as it is.
_recorder: dict[tuple[str, ...], Axes] | None = None


def param(module: nn.Module, name: str, axes: Axes, shape: tuple[int, ...], init: Callable[..., Any]) -> jax.Array:
    """Declares a float32 parameter of `module` whose dimensions are the logical `axes`."""
    if len(axes) != len(shape):
        raise ValueError(f"{'/'.join(module.path)}/{name}: axes {axes} do not match shape {shape}")
    if _recorder is not None:
        _recorder[(*module.path, name)] = axes
    return module.param(name, init, shape, jnp.float32)


@contextlib.contextmanager
def recording() -> Iterator[dict[tuple[str, ...], Axes]]:
    """Within the context every `param` is noted in the yielded dict: path -> logical axes."""
    global _recorder
    previous, _recorder = _recorder, {}
    try:
        yield _recorder
    finally:
        _recorder = previous


def adapter(module: nn.Module, name: str) -> tuple[jax.Array, jax.Array] | None:
    """Returns the low-rank pair (a [in..., r], b [r, out...]) that stands beside the parameter, if there is one."""
    if not module.has_variable("params", name + LORA_A):
        return None
    return module.get_variable("params", name + LORA_A), module.get_variable("params", name + LORA_B)


def linear(
    module: nn.Module,
    name: str,
    x: jax.Array,
    axes: Axes,
    shape: tuple[int, ...],
    *,
    inputs: int = 1,
    bias: bool = False,
) -> jax.Array:
    """Declares a matrix [in..., out...] of `module` and applies it, with its adapter and bias, to x [..., in...].

    Args:
        axes, shape: of the matrix.
        inputs: how many of its dimensions are contracted.
        bias: whether there is one, [out...], named `<name>_bias`.
    """
    weight = param(module, name, axes, shape, fan_in(*range(inputs)))
    out = jnp.tensordot(x, weight.astype(x.dtype), axes=inputs)
    if (pair := adapter(module, name)) is not None:
        a, b = (w.astype(x.dtype) for w in pair)
        out += jnp.tensordot(jnp.tensordot(x, a, axes=inputs), b, axes=1)
    if bias:
        value = param(module, name + BIAS, axes[inputs:], shape[inputs:], zeros)
        out += value.astype(x.dtype).reshape((1,) * (out.ndim - value.ndim) + value.shape)
    return out


def ones(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Initialises with ones."""
    return jnp.ones(shape, dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Initialises with zeros."""
    return jnp.zeros(shape, dtype)


def fan_in(*axes: int) -> Callable[..., jax.Array]:
    """Truncated normal with variance 1 / (product of the sizes of the input dimensions `axes`)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        size = 1
        for axis in axes:
            size *= shape[axis]
        return jax.random.truncated_normal(key, -3.0, 3.0, shape, dtype) * size**-0.5

    return init
