"""The mixture-of-experts layer: a float32 router, and dropless dispatch to experts split over the mesh.

Dispatch has one interface, `experts(x, choices, gates, weights, first)`, and three forms (`BACKENDS`): sorted
blocks, sorted `jax.lax.ragged_dot`, and the dense product over all experts that the tests use as an oracle. None
drops a token, and none holds anything of shape [tokens, experts, D].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlvr import partition
from rlvr.policy.config import PolicyConfig
from rlvr.policy.parameters import fan_in, param


class ExpertWeights(NamedTuple):
    """Weights of (a shard of) the experts: gate and up [E, D, F], down [E, F, D]."""

    gate: jax.Array
    up: jax.Array
    down: jax.Array


class RouterStats(NamedTuple):
    """Sums over the valid tokens of one layer, so that they add up over micro-batches.

    Attributes:
        tokens: number of valid tokens.
        load: [E] tokens that chose each expert (sums to k * tokens).
        probability: [E] summed router probabilities.
        square_lse: summed logsumexp(router logits)**2, for the z-loss.
        entropy: summed entropy of the router's distribution, nats.
    """

    tokens: jax.Array
    load: jax.Array
    probability: jax.Array
    square_lse: jax.Array
    entropy: jax.Array


class Moe(nn.Module):
    """Top-k mixture of SwiGLU experts."""

    config: PolicyConfig

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> tuple[jax.Array, RouterStats]:
        """Maps x [B, T, D] to [B, T, D]; only `valid` tokens [B, T] enter the statistics."""
        c = self.config
        shape = (c.experts, c.dim, c.expert_hidden)
        axes = ("experts", "embed", "expert_hidden")
        router = param(self, "router", ("embed", None), (c.dim, c.experts), fan_in(0))
        weights = ExpertWeights(
            gate=param(self, "gate", axes, shape, fan_in(1)),
            up=param(self, "up", axes, shape, fan_in(1)),
            down=param(
                self,
                "down",
                ("experts", "expert_hidden", "embed"),
                (c.experts, c.expert_hidden, c.dim),
                fan_in(1),
            ),
        )
        weights = jax.tree.map(lambda w: w.astype(x.dtype), weights)
        # The router stays in float32: a choice that flips between sampling and training is the known way for RL of
        # mixtures to collapse.
        logits = jnp.einsum("BTD,DE->BTE", x.astype(jnp.float32), router, precision=jax.lax.Precision.HIGHEST)
        choices, gates = route(logits, c.experts_per_token, c.renormalize_gates)
        out = dispatch(x, choices, gates, weights, backend(c.moe_backend))
        return partition.constrain(out, "batch", None, None), router_stats(logits, choices, valid)


def route(logits: jax.Array, k: int, renormalize: bool) -> tuple[jax.Array, jax.Array]:
    """Softmax over all experts, then the k most probable.

    Args:
        logits: [..., E] float32.
        k: experts a token.
        renormalize: whether the k gates are divided by their sum.

    Returns:
        (choices [..., k] int32, gates [..., k] float32), most probable first.
    """
    gates, choices = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), k)
    if renormalize:
        gates = gates / jnp.sum(gates, axis=-1, keepdims=True)
    return choices, gates


def router_stats(logits: jax.Array, choices: jax.Array, valid: jax.Array) -> RouterStats:
    """Sums the router's statistics over valid tokens: logits [B, T, E], choices [B, T, k], valid [B, T]."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    probabilities = jnp.exp(log_probabilities)
    weight = valid.astype(jnp.float32)
    chosen = jnp.sum(jax.nn.one_hot(choices, logits.shape[-1], dtype=jnp.float32), axis=-2)
    lse = jax.scipy.special.logsumexp(logits, axis=-1)
    entropy = -jnp.sum(probabilities * log_probabilities, axis=-1)
    return RouterStats(
        tokens=jnp.sum(weight),
        load=jnp.einsum("BTE,BT->E", chosen, weight),
        probability=jnp.einsum("BTE,BT->E", probabilities, weight),
        square_lse=jnp.sum(weight * lse**2),
        entropy=jnp.sum(weight * entropy),
    )


def balance_loss(stats: RouterStats, k: int) -> jax.Array:
    """Switch load-balance loss (Fedus et al., 2101.03961), E * sum_e f_e P_e with f_e the share of the assignments:
    1 at perfect balance. Averaged over the layers; fields of `stats` are stacked [layers, ...]."""
    tokens = jnp.maximum(stats.tokens, 1.0)[:, None]
    share = jax.lax.stop_gradient(stats.load) / (k * tokens)
    probability = stats.probability / tokens
    return jnp.mean(share.shape[-1] * jnp.sum(share * probability, axis=-1))


def z_loss(stats: RouterStats) -> jax.Array:
    """Router z-loss (Zoph et al., 2202.08906): mean over tokens and layers of logsumexp(logits)**2."""
    return jnp.mean(stats.square_lse / jnp.maximum(stats.tokens, 1.0))


def dispatch(
    x: jax.Array,
    choices: jax.Array,
    gates: jax.Array,
    weights: ExpertWeights,
    experts: Callable[..., jax.Array],
) -> jax.Array:
    """Sends tokens x [B, T, D] to their experts: returns the gated sum [B, T, D].

    On a mesh this is fully manual: each shard of the `expert` axis gathers the tokens of its peers, applies the
    experts it holds, and the partial sums are scattered back.
    """
    _, length, dim = x.shape

    def flat(x: jax.Array, choices: jax.Array, gates: jax.Array, weights: ExpertWeights, first: jax.Array) -> jax.Array:
        tokens = x.shape[0] * length
        out = experts(x.reshape(tokens, dim), choices.reshape(tokens, -1), gates.reshape(tokens, -1), weights, first)
        return out.reshape(x.shape)

    if partition.current_mesh() is None:
        return flat(x, choices, gates, weights, jnp.int32(0))

    def shard(x: jax.Array, choices: jax.Array, gates: jax.Array, weights: ExpertWeights) -> jax.Array:
        x, choices, gates = (jax.lax.all_gather(a, "expert", axis=0, tiled=True) for a in (x, choices, gates))
        first = jax.lax.axis_index("expert") * weights.gate.shape[0]
        out = flat(x, choices, gates, weights, first)
        out = jax.lax.psum_scatter(out, "expert", scatter_dimension=0, tiled=True)
        return jax.lax.psum(out, "tensor")

    rows = partition.spec(("batch", None, None))
    columns = PartitionSpec("expert", None, "tensor")
    weight_specs: Any = {"gate": columns, "up": columns, "down": PartitionSpec("expert", "tensor", None)}
    return jax.shard_map(
        shard,
        in_specs=(rows, rows, rows, ExpertWeights(**weight_specs)),
        out_specs=rows,
    )(x, choices, gates, weights)


def swiglu(x: jax.Array, product: Callable[[jax.Array, jax.Array], jax.Array], weights: ExpertWeights) -> jax.Array:
    """SwiGLU in terms of the backend's grouped product."""
    return product(jax.nn.silu(product(x, weights.gate)) * product(x, weights.up), weights.down)


def dense_experts(
    x: jax.Array, choices: jax.Array, gates: jax.Array, weights: ExpertWeights, first: jax.Array
) -> jax.Array:
    """Every local expert on every token, weighted by its gate or zero. The oracle: E/k times the work.

    Args (of all backends):
        x: [N, D]; choices, gates: [N, k], experts numbered globally.
        weights: of the local experts, numbered from `first`.

    Returns:
        [N, D]: sum over a token's local experts of gate * expert(x).
    """
    local = first + jnp.arange(weights.gate.shape[0])[None, None, :]
    weight = jnp.sum(jnp.where(choices[:, :, None] == local, gates[:, :, None], 0.0), axis=1)  # [N, E]
    hidden = jax.nn.silu(jnp.einsum("ND,EDF->ENF", x, weights.gate)) * jnp.einsum("ND,EDF->ENF", x, weights.up)
    return jnp.einsum("ENF,EFD,NE->ND", hidden, weights.down, weight.astype(x.dtype))


def sort_by_expert(choices: jax.Array, experts: int, first: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sorts the assignments [N, k] by local expert, foreign ones last.

    Returns:
        (order [N*k]: assignment at each sorted place, owner [N*k]: its local expert, or `experts` if foreign,
        sizes [experts]: assignments of each local expert).
    """
    owner = choices.reshape(-1) - first
    owner = jnp.where((owner >= 0) & (owner < experts), owner, experts)
    order = jnp.argsort(owner, stable=True)
    sizes = jnp.sum(owner[:, None] == jnp.arange(experts)[None, :], axis=0, dtype=jnp.int32)
    return order, owner[order], sizes


def combine(rows: jax.Array, places: jax.Array, gates: jax.Array) -> jax.Array:
    """Sums gate * rows[place] over a token's k assignments, in the fixed order of the choices.

    Args:
        rows: [M, D]; places: [N, k], M or more means no contribution from here; gates: [N, k].
    """
    picked = rows.at[places].get(mode="fill", fill_value=0)  # [N, k, D]
    return jnp.einsum("NkD,Nk->ND", picked, gates.astype(rows.dtype))


def ragged_experts(
    x: jax.Array, choices: jax.Array, gates: jax.Array, weights: ExpertWeights, first: jax.Array
) -> jax.Array:
    """Sorted grouped product by `jax.lax.ragged_dot`: for TPU and GPU. See `dense_experts`."""
    tokens, k = choices.shape
    order, _, sizes = sort_by_expert(choices, weights.gate.shape[0], first)
    out = swiglu(x[order // k], lambda a, w: jax.lax.ragged_dot(a, w, sizes), weights)
    places = jnp.zeros_like(order).at[order].set(jnp.arange(tokens * k, dtype=order.dtype)).reshape(tokens, k)
    local = places < jnp.sum(sizes)  # rows past the groups are zero by the reference semantics only
    return combine(out, jnp.where(local, places, tokens * k), gates)


def blocked_experts(
    x: jax.Array, choices: jax.Array, gates: jax.Array, weights: ExpertWeights, first: jax.Array
) -> jax.Array:
    """Sorted blocks of one expert each, as one batched product: for CPU, where `ragged_dot` costs E/k times more.

    Each expert's rows are padded to whole blocks, so the number of blocks is static: at most N*k/block + E.
    See `dense_experts`.
    """
    tokens, k = choices.shape
    experts = weights.gate.shape[0]
    block = block_size(tokens * k, experts)
    blocks = tokens * k // block + experts
    order, owner, sizes = sort_by_expert(choices, experts, first)
    ends = jnp.cumsum((sizes + block - 1) // block)  # in blocks
    # Where each sorted assignment goes: its expert's first block, plus its rank among that expert's assignments.
    first_row = jnp.concatenate([(ends - (sizes + block - 1) // block) * block, jnp.array([blocks * block])])
    first_rank = jnp.concatenate([jnp.cumsum(sizes) - sizes, jnp.array([0])])
    place = first_row[owner] + jnp.arange(tokens * k) - first_rank[owner]
    place = jnp.where(owner < experts, place, blocks * block)
    source = jnp.full((blocks * block,), tokens).at[place].set(order // k, mode="drop")
    rows = x.at[source].get(mode="fill", fill_value=0).reshape(blocks, block, -1)
    expert = jnp.minimum(jnp.searchsorted(ends, jnp.arange(blocks), side="right"), experts - 1)
    out = swiglu(rows, lambda a, w: jnp.einsum("nbi,nio->nbo", a, w[expert]), weights)
    places = jnp.zeros_like(place).at[order].set(place).reshape(tokens, k)
    return combine(out.reshape(blocks * block, -1), places, gates)


def block_size(assignments: int, experts: int) -> int:
    """Rows a block: about half an expert's fair share, between 8 and 128, so that padding stays a small part."""
    size = 8
    while size < 128 and size * 4 <= assignments // experts:
        size *= 2
    return size


BACKENDS: dict[str, Callable[..., jax.Array]] = {
    "blocked": blocked_experts,
    "ragged": ragged_experts,
    "dense": dense_experts,
}


def backend(name: str) -> Callable[..., jax.Array]:
    """Returns the dispatch form; "auto" is blocks on CPU and ragged products elsewhere."""
    if name == "auto":
        name = "blocked" if jax.default_backend() == "cpu" else "ragged"
    return BACKENDS[name]
