"""Parameters with their logical axes declared beside them, while the tree stays a plain dict of arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlvr.partition import Axes

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


def fan_in(*axes: int) -> Callable[..., jax.Array]:
    """Truncated normal with variance 1 / (product of the sizes of the input dimensions `axes`)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        size = 1
        for axis in axes:
            size *= shape[axis]
        return jax.random.truncated_normal(key, -3.0, 3.0, shape, dtype) * size**-0.5

    return init
