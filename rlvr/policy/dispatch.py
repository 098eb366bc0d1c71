"""How tokens reach experts that are split over the mesh, in a fully manual `shard_map`.

Two forms (`EXCHANGES`), both dropless, with static shapes. S shards of the `expert` axis hold n tokens each:

"gather": every shard gathers all S * n tokens, applies its experts, and the partial sums are scattered back. All
backends have it, and where most tokens go to every shard anyway it moves little more and copies less.

"ragged": a token is sent to a shard only if that holds one of its experts, and once however many it holds: to at most
min(k, S) of the S shards. TPU and GPU have the primitive. Buffers are for the worst case, in which all tokens go to one
shard: S * n received rows of D, which is what "gather" always holds, and n * min(k, S) sent; none of that is cleared.
The choices and gates, k numbers a token, are gathered whole: from them every shard knows who sends what to whom.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlvr import partition
from rlvr.policy.backends import backend
from rlvr.policy.config import PolicyConfig
from rlvr.policy.experts import Experts, Projection
from rlvr.policy.sorting import blank, invert, no_gradient, permute, sort_by, sum_rows, take_rows, vary_alike

AXIS = "expert"

Run = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def dispatch(x: jax.Array, choices: jax.Array, gates: jax.Array, weights: Experts, config: PolicyConfig) -> jax.Array:
    """Sends tokens x [B, T, D] to their experts [B, T, k]: returns the sum weighted with gates, [B, T, D]."""
    experts = backend(config.moe_backend)
    mesh = partition.current_mesh()

    def shard(x: jax.Array, choices: jax.Array, gates: jax.Array, weights: Experts) -> jax.Array:
        rows, chosen, gate = (a.reshape(-1, a.shape[-1]) for a in (x, choices, gates))
        if mesh is None:
            return experts(rows, chosen, gate, weights, jnp.int32(0), config).reshape(x.shape)
        held = weights.gate.weight.shape[0]
        first = jax.lax.axis_index(AXIS) * held
        if weights.down.bias is not None:  # the shards of F are summed at the end: only one may add it
            bias = jnp.where(jax.lax.axis_index("tensor") == 0, weights.down.bias, 0)
            weights = weights._replace(down=weights.down._replace(bias=bias))

        def run(x: jax.Array, choices: jax.Array, gates: jax.Array) -> jax.Array:
            return experts(x, choices, gates, weights, first, config)

        name = exchange(config, config.experts // held, partition.platform())
        out = EXCHANGES[name](rows, chosen, gate, run, held)
        return jax.lax.psum(out.reshape(x.shape), "tensor")

    if mesh is None:
        return shard(x, choices, gates, weights)
    rows = partition.spec(("batch", None, None))
    return jax.shard_map(
        shard, in_specs=(rows, rows, rows, _specs(weights)), out_specs=rows
    )(x, choices, gates, weights)  # fmt: skip


def _specs(weights: Experts) -> Experts:
    """How the weights are split over the mesh: experts over `expert`, F over `tensor`, D and r not at all."""

    def projection(p: Projection, inputs: str | None, outputs: str | None) -> Projection:
        spec: Any = PartitionSpec
        return Projection(
            weight=spec("expert", inputs, outputs),
            bias=None if p.bias is None else spec("expert", outputs),
            lora_a=None if p.lora_a is None else spec("expert", inputs, None),
            lora_b=None if p.lora_b is None else spec("expert", None, outputs),
        )

    return Experts(
        projection(weights.gate, None, "tensor"),
        projection(weights.up, None, "tensor"),
        projection(weights.down, "tensor", None),
    )


def by_gather(x: jax.Array, choices: jax.Array, gates: jax.Array, run: Run, held: int) -> jax.Array:
    """Gathers the tokens of all shards, and scatters the partial sums.

    Args (of all exchanges):
        x: [n, D] this shard's tokens; choices, gates: [n, k].
        run: applies this shard's experts to any tokens: (x [N, D], choices [N, k], gates [N, k]) -> [N, D].
        held: how many experts each shard holds.

    Returns:
        [n, D]: for this shard's tokens, the sum over the experts of all shards.
    """
    x, choices, gates = (jax.lax.all_gather(a, AXIS, axis=0, tiled=True) for a in (x, choices, gates))
    chosen = jnp.sum(choices // held == jax.lax.axis_index(AXIS), axis=-1, dtype=jnp.int32)
    order, inverse = arrange_arrivals(chosen, chosen.size, choices.shape[1])
    x, gates = (permute(*vary_alike(a, order, inverse)) for a in (x, gates))
    sums = permute(*vary_alike(run(x, choices[order], gates), inverse, order))
    return jax.lax.psum_scatter(sums, AXIS, scatter_dimension=0, tiled=True)


def by_ragged_all_to_all(x: jax.Array, choices: jax.Array, gates: jax.Array, run: Run, held: int) -> jax.Array:
    """Sends each token to the shards that hold its experts, and gets their sums back. See `by_gather`."""
    tokens, k = choices.shape
    shards, me = jax.lax.axis_size(AXIS), jax.lax.axis_index(AXIS)
    all_choices, all_gates = (jax.lax.all_gather(a, AXIS, axis=0, tiled=True) for a in (choices, gates))
    held_by = (all_choices // held)[:, :, None] == jnp.arange(shards)[None, None, :]
    chosen = jnp.sum(held_by, axis=1, dtype=jnp.int32)  # [S * n, S] how many experts of each shard
    counts = jnp.sum((chosen > 0).reshape(shards, tokens, shards), axis=1, dtype=jnp.int32)  # [from, to]

    targets = choices // held
    again = jnp.any((targets[:, :, None] == targets[:, None, :]) & _earlier(k)[None], axis=-1)
    fewer = k - jnp.take_along_axis(jax.lax.dynamic_slice_in_dim(chosen, me * tokens, tokens), targets, axis=1)
    departures = sort_by(jnp.where(again, -1, targets * k + fewer).reshape(-1), shards * k)
    route = Route(
        sent_at=_starts(counts[me]),
        sent=counts[me],
        lands_at=(jnp.cumsum(counts, axis=0) - counts)[me],
        received_at=_starts(counts[:, me]),
        received=counts[:, me],
        leaves_at=(jnp.cumsum(counts, axis=1) - counts)[:, me],
    )
    rows = exchange_rows(take_rows(x, departures, k, tokens * min(k, shards)), route, shards * tokens)
    # The rows past the arrivals have, by their place in this order, choices of experts that are not here.
    order, inverse = arrange_arrivals(jnp.take(chosen, me, axis=1), tokens, k)
    sums = run(rows, all_choices[order], permute(*vary_alike(all_gates, order, inverse)))
    returned = exchange_rows(sums, route.reverse(), tokens * min(k, shards))
    return sum_rows(returned, departures, k)


def arrange_arrivals(chosen: jax.Array, tokens: int, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns the order in which tokens arrive, and its inverse: by source, there by how many experts they have here,
    and then in their order; those without one last. Tokens with equally many stand together, as they are summed.

    Args:
        chosen: [N] how many of the experts that are here each token chose.
        tokens: of one source.
    """
    source = jnp.arange(chosen.size) // tokens
    order = jnp.argsort(jnp.where(chosen > 0, source * k + k - chosen, chosen.size // tokens * k), stable=True)
    return order, invert(order)


class Route(NamedTuple):
    """Which rows go where, int32 [S] each.

    Attributes:
        sent_at, sent: where the rows for each shard begin among those to be sent, and how many there are.
        lands_at: where they begin at that shard.
        received_at, received: where the rows of each shard begin here, and how many there are.
        leaves_at: where they begin at that shard.
    """

    sent_at: jax.Array
    sent: jax.Array
    lands_at: jax.Array
    received_at: jax.Array
    received: jax.Array
    leaves_at: jax.Array

    def reverse(self) -> Route:
        """Returns the way back."""
        return Route(*self[3:], *self[:3])


def exchange_rows(rows: jax.Array, route: Route, count: int) -> jax.Array:
    """Sends rows [M, D] over the `expert` axis: returns [count, D] those received, and anything after them."""
    return _exchange(*vary_alike(rows, route), count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _exchange(rows: jax.Array, route: Route, count: int) -> jax.Array:
    return jax.lax.ragged_all_to_all(
        rows,
        blank((count, rows.shape[1]), rows),
        route.sent_at,
        route.sent,
        route.lands_at,
        route.received,
        axis_name=AXIS,
    )


def _exchange_forward(rows: jax.Array, route: Route, count: int) -> tuple[jax.Array, Any]:
    return _exchange(rows, route, count), (route, rows.shape[0])


def _exchange_backward(count: int, saved: Any, gradient: jax.Array) -> tuple[jax.Array, Any]:
    route, sent = saved
    return _exchange(gradient, route.reverse(), sent), no_gradient(route)


_exchange.defvjp(_exchange_forward, _exchange_backward)


def _starts(sizes: jax.Array) -> jax.Array:
    return jnp.cumsum(sizes) - sizes


def _earlier(k: int) -> jax.Array:
    """Returns [k, k] which of a token's choices stand before each."""
    return jnp.arange(k)[None, :] < jnp.arange(k)[:, None]


EXCHANGES: dict[str, Callable[[jax.Array, jax.Array, jax.Array, Run, int], jax.Array]] = {
    "gather": by_gather,
    "ragged": by_ragged_all_to_all,
}


def exchange(config: PolicyConfig, shards: int, platform: str) -> str:
    """Returns the name of the exchange of a config; "auto" is "gather" on CPU, which has no `ragged_all_to_all`, and
    where an even spread sends more than half of the tokens to each shard, else "ragged".
    """
    if config.moe_exchange != "auto":
        return config.moe_exchange
    sent = 1 - (1 - 1 / shards) ** config.experts_per_token
    return "gather" if platform == "cpu" or sent > 0.5 else "ragged"
