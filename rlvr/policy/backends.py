"""What a shard's experts do with tokens, in three forms (`BACKENDS`): loops over blocks of sorted rows,
`jax.lax.ragged_dot` over sorted rows, and every expert on every token, the oracle of the tests.

None drops a token, and none but the oracle holds anything of shape [tokens, experts, D].
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy.blocks import blocked_rows
from rlvr.policy.config import PolicyConfig
from rlvr.policy.experts import Experts, project
from rlvr.policy.mlp import gated
from rlvr.policy.ragged import ragged_product
from rlvr.policy.sorting import Order, fit, permute, sort_by, sum_rows, take_rows, vary_alike


def dense_experts(
    x: jax.Array, choices: jax.Array, gates: jax.Array, weights: Experts, first: jax.Array, config: PolicyConfig
) -> jax.Array:
    """Every local expert on every token, weighted by its gate or zero: E/k times the work.

    Args (of all backends):
        x: [N, D]; choices, gates: [N, k], experts numbered globally.
        weights: of the local experts, numbered from `first`.

    Returns:
        [N, D]: sum over a token's local experts of gate * expert(x).
    """
    count = weights.gate.weight.shape[0]
    local = first + jnp.arange(count)[None, None, :]
    weight = jnp.sum(jnp.where(choices[:, :, None] == local, gates[:, :, None], 0.0), axis=1)  # [N, E]
    apply = functools.partial(
        project, product=lambda a, w: jnp.einsum("eni,eio->eno", a, w), spread=lambda bias: bias[:, None, :]
    )
    rows = jnp.broadcast_to(x[None], (count, *x.shape))
    out = apply(gated(config, apply(rows, weights.gate), apply(rows, weights.up)), weights.down)
    return jnp.einsum("END,NE->ND", out, weight.astype(x.dtype))


def ragged_rows(
    x: jax.Array, order: Order, gates: jax.Array, weights: Experts, k: int, config: PolicyConfig
) -> jax.Array:
    """The experts on sorted rows, by `jax.lax.ragged_dot`: all that there can be, filled or not.

    Args (of all forms of sorted rows):
        x: [N, D] tokens.
        order: their assignments to the experts of `weights`.
        gates: [N, k] of the assignments.

    Returns:
        [N, D]: for each token the sum of its rows, weighted with their gates.
    """
    experts = weights.gate.weight.shape[0]
    count = x.shape[0] * min(k, experts)  # a token's experts are distinct: no more rows can be local
    ends = jnp.cumsum(order.sizes)
    rows = jnp.arange(count)
    expert = jnp.minimum(jnp.searchsorted(ends, rows, side="right"), experts - 1)
    apply = functools.partial(
        project,
        product=lambda a, w: ragged_product(a, w, order.sizes),
        # Masked, for some kernels leave past the groups whatever was in memory, and the gradient of the last expert's
        # bias would collect it.
        spread=lambda bias: jnp.where((rows < ends[-1])[:, None], bias[expert], 0),
    )
    taken = take_rows(x, order, k, count)
    out = apply(gated(config, apply(taken, weights.gate), apply(taken, weights.up)), weights.down)
    gate = fit(permute(*vary_alike(gates.reshape(-1), order.order, order.inverse)), count)
    # Masked before the product: the gradient by the gates would meet what the kernels left.
    return sum_rows(jnp.where((rows < ends[-1])[:, None], out, 0) * gate[:, None].astype(out.dtype), order, k)


def sorted_experts(
    form: Callable[[jax.Array, Order, jax.Array, Experts, int, PolicyConfig], jax.Array],
    x: jax.Array,
    choices: jax.Array,
    gates: jax.Array,
    weights: Experts,
    first: jax.Array,
    config: PolicyConfig,
) -> jax.Array:
    """Sorts the assignments by expert and gives them to a form of sorted rows. See `dense_experts`."""
    k = choices.shape[1]
    order = sort_by(choices.reshape(-1) - first, weights.gate.weight.shape[0])
    return form(x, order, gates, weights, k, config)


# Rows of an expert, evenly spread, from which on blocks are worth their turns.
BUSY = 256


def experts_by_load(
    x: jax.Array, choices: jax.Array, gates: jax.Array, weights: Experts, first: jax.Array, config: PolicyConfig
) -> jax.Array:
    """Blocks where experts have many rows, else ragged products: in decoding what counts is that each expert's matrices
    are read, and no loop does that as fast. See `dense_experts`."""
    form = "blocked" if choices.size >= BUSY * config.experts else "ragged"
    return BACKENDS[form](x, choices, gates, weights, first, config)


BACKENDS: dict[str, Callable[..., jax.Array]] = {
    "blocked": functools.partial(sorted_experts, blocked_rows),
    "ragged": functools.partial(sorted_experts, ragged_rows),
    "dense": dense_experts,
}


def backend(name: str) -> Callable[..., jax.Array]:
    """Returns the form of a name; "auto": blocks on CPU, on TPU by load, and on GPU, whose loops ask the host at each
    turn, ragged products."""
    if name == "auto":
        on = partition.platform()
        return experts_by_load if on == "tpu" else BACKENDS["blocked" if on == "cpu" else "ragged"]
    return BACKENDS[name]
