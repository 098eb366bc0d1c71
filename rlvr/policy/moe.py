"""The mixture-of-experts layer: dropless dispatch to experts split over the mesh.

Dispatch has one interface, `experts(x, choices, gates, weights, first, config)`, and three forms (`BACKENDS`): sorted
blocks, sorted `jax.lax.ragged_dot`, and the dense product over all experts that the tests use as an oracle. None
drops a token, and none holds anything of shape [tokens, experts, D].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlvr import partition
from rlvr.policy.config import PolicyConfig
from rlvr.policy.grouped import grouped_dot, permute
from rlvr.policy.mlp import gated
from rlvr.policy.parameters import BIAS, adapter, fan_in, param, zeros
from rlvr.policy.router import RouterStats, choose_experts, compute_gates, router_stats, score_experts


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


class Moe(nn.Module):
    """Top-k mixture of gated linear units."""

    config: PolicyConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, valid: jax.Array, replay: jax.Array | None
    ) -> tuple[jax.Array, RouterStats, jax.Array]:
        """Mixes x [B, T, D].

        Args:
            valid: [B, T] which tokens enter the statistics.
            replay: [B, T, k] experts to use instead of the router's choice where they are not negative, or None.

        Returns:
            ([B, T, D], statistics, the router's own choices [B, T, k]).
        """
        c = self.config
        router = param(self, "router", ("embed", None), (c.dim, c.experts), fan_in(0))
        # The router stays in float32: a choice that flips between sampling and training is the known way for RL of
        # mixtures to collapse.
        logits = jnp.einsum("BTD,DE->BTE", x.astype(jnp.float32), router, precision=jax.lax.Precision.HIGHEST)
        if c.router_bias:
            logits += param(self, "router_bias", (None,), (c.experts,), zeros)[None, None, :]
        bias = param(self, "selection_bias", (None,), (c.experts,), zeros) if c.selection_bias else None
        scores = score_experts(logits, c)
        choices = choose_experts(scores, bias, c)
        used = choices if replay is None else jnp.where(replay >= 0, replay, choices)
        weights = Experts(
            gate=self._projection("gate", c.dim, c.expert_hidden),
            up=self._projection("up", c.dim, c.expert_hidden),
            down=self._projection("down", c.expert_hidden, c.dim),
        )
        weights = jax.tree.map(lambda w: w.astype(x.dtype), weights)
        out = dispatch(x, used, compute_gates(scores, used, c), weights, c)
        return partition.constrain(out, "batch", None, None), router_stats(logits, scores, used, valid), choices

    def _projection(self, name: str, inputs: int, outputs: int) -> Projection:
        axes = ("embed", "expert_hidden") if name != "down" else ("expert_hidden", "embed")
        shape = (self.config.experts, inputs, outputs)
        weight = param(self, name, ("experts", *axes), shape, fan_in(1))
        bias = None
        if self.config.expert_bias:
            bias = param(self, name + BIAS, ("experts", axes[1]), (shape[0], outputs), zeros)
        return Projection(weight, bias, *(adapter(self, name) or (None, None)))


def dispatch(x: jax.Array, choices: jax.Array, gates: jax.Array, weights: Experts, config: PolicyConfig) -> jax.Array:
    """Sends tokens x [B, T, D] to their experts: returns the gated sum [B, T, D].

    On a mesh this is fully manual: each shard of the `expert` axis gathers the tokens of its peers, applies the
    experts it holds, and the partial sums are scattered back.
    """
    experts = backend(config.moe_backend)
    length = x.shape[1]

    def flat(x: jax.Array, choices: jax.Array, gates: jax.Array, weights: Experts, first: jax.Array) -> jax.Array:
        tokens = x.shape[0] * length
        flattened = (a.reshape(tokens, -1) for a in (x, choices, gates))
        return experts(*flattened, weights, first, config).reshape(x.shape)

    if partition.current_mesh() is None:
        return flat(x, choices, gates, weights, jnp.int32(0))

    def shard(x: jax.Array, choices: jax.Array, gates: jax.Array, weights: Experts) -> jax.Array:
        x, choices, gates = (jax.lax.all_gather(a, "expert", axis=0, tiled=True) for a in (x, choices, gates))
        first = jax.lax.axis_index("expert") * weights.gate.weight.shape[0]
        if weights.down.bias is not None:  # the shards of F are summed at the end: only one may add it
            bias = jnp.where(jax.lax.axis_index("tensor") == 0, weights.down.bias, 0)
            weights = weights._replace(down=weights.down._replace(bias=bias))
        out = flat(x, choices, gates, weights, first)
        out = jax.lax.psum_scatter(out, "expert", scatter_dimension=0, tiled=True)
        return jax.lax.psum(out, "tensor")

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


def feed_forward(
    x: jax.Array,
    weights: Experts,
    config: PolicyConfig,
    product: Callable[[jax.Array, jax.Array], jax.Array],
    spread: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """The experts' units in terms of a backend.

    Args:
        x: the rows as the backend arranges them.
        product: multiplies rows with [E, in, out], each by its expert's matrix.
        spread: brings [E, out] to the rows, each its expert's vector.
    """

    def project(x: jax.Array, p: Projection) -> jax.Array:
        out = product(x, p.weight)
        if p.lora_a is not None and p.lora_b is not None:
            out += product(product(x, p.lora_a), p.lora_b)
        return out if p.bias is None else out + spread(p.bias)

    return project(gated(config, project(x, weights.gate), project(x, weights.up)), weights.down)


def dense_experts(
    x: jax.Array, choices: jax.Array, gates: jax.Array, weights: Experts, first: jax.Array, config: PolicyConfig
) -> jax.Array:
    """Every local expert on every token, weighted by its gate or zero. The oracle: E/k times the work.

    Args (of all backends):
        x: [N, D]; choices, gates: [N, k], experts numbered globally.
        weights: of the local experts, numbered from `first`.

    Returns:
        [N, D]: sum over a token's local experts of gate * expert(x).
    """
    count = weights.gate.weight.shape[0]
    local = first + jnp.arange(count)[None, None, :]
    weight = jnp.sum(jnp.where(choices[:, :, None] == local, gates[:, :, None], 0.0), axis=1)  # [N, E]
    rows = jnp.broadcast_to(x[None], (count, *x.shape))
    out = feed_forward(
        rows, weights, config, lambda a, w: jnp.einsum("eni,eio->eno", a, w), lambda bias: bias[:, None, :]
    )
    return jnp.einsum("END,NE->ND", out, weight.astype(x.dtype))


def sorted_experts(
    grouped: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    choices: jax.Array,
    gates: jax.Array,
    weights: Experts,
    first: jax.Array,
    config: PolicyConfig,
) -> jax.Array:
    """Sorts the assignments by expert and multiplies them group by group. See `dense_experts`.

    Args:
        grouped: (rows [M, in] sorted by group, weights [G, in, out], sizes [G]) -> [M, out]; whatever it leaves in
            rows past the groups is not used.
    """
    tokens, k = choices.shape
    experts = weights.gate.weight.shape[0]
    owner = choices.reshape(-1) - first
    owner = jnp.where((owner >= 0) & (owner < experts), owner, experts)  # foreign ones last
    order = jnp.argsort(owner, stable=True)
    inverse = jnp.zeros_like(order).at[order].set(jnp.arange(tokens * k, dtype=order.dtype))
    sizes = jnp.sum(owner[:, None] == jnp.arange(experts)[None, :], axis=0, dtype=jnp.int32)
    repeated = jnp.broadcast_to(x[:, None, :], (tokens, k, x.shape[1])).reshape(tokens * k, -1)
    out = feed_forward(
        permute(repeated, order, inverse),
        weights,
        config,
        lambda a, w: grouped(a, w, sizes),
        lambda bias: bias[jnp.minimum(owner[order], experts - 1)],
    )
    mine = (owner < experts)[:, None]
    out = jnp.where(mine, permute(out, inverse, order), 0).reshape(tokens, k, -1)
    return jnp.einsum("NkD,Nk->ND", out, gates.astype(out.dtype))


BACKENDS: dict[str, Callable[..., jax.Array]] = {
    "blocked": functools.partial(sorted_experts, grouped_dot),
    "ragged": functools.partial(sorted_experts, lambda rows, weights, sizes: jax.lax.ragged_dot(rows, weights, sizes)),
    "dense": dense_experts,
}


def backend(name: str) -> Callable[..., jax.Array]:
    """Returns the dispatch form; "auto" is blocks on CPU and ragged products elsewhere."""
    if name == "auto":
        name = "blocked" if jax.default_backend() == "cpu" else "ragged"
    return BACKENDS[name]
