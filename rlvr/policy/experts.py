"""The weights of a mixture layer's experts, and what one of their matrices does."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax


class Projection(NamedTuple):
    """One of the three matrices of (a shard of) the experts.

    Attributes:
        weight: [E, in, out].
        bias: [E, out], or None.
        lora_a, lora_b: [E, in, r] and [E, r, out], whose product is added to the weight, or None.
    """

    weight: jax.Array
    bias: jax.Array | None = None
    lora_a: jax.Array | None = None
    lora_b: jax.Array | None = None


class Experts(NamedTuple):
    """The weights of (a shard of) the experts: gate and up from D to F, down from F to D."""

    gate: Projection
    up: Projection
    down: Projection


Product = Callable[[jax.Array, jax.Array], jax.Array]


def project(x: jax.Array, p: Projection, product: Product, spread: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Applies one of the matrices to rows.

    Args:
        x: the rows as the form arranges them.
        product: multiplies rows with [E, in, out], each by its expert's matrix.
        spread: brings [E, out] to the rows, each its expert's vector.
    """
    out = product(x, p.weight)
    if p.lora_a is not None and p.lora_b is not None:
        out += product(product(x, p.lora_a), p.lora_b)
    return out if p.bias is None else out + spread(p.bias)
