"""The router of a mixture layer: which experts a token goes to, with which weights, and the statistics and losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvr.policy.config import PolicyConfig


def score_experts(logits: jax.Array, c: PolicyConfig) -> jax.Array:
    """Maps logits [..., E] to the scores that experts are chosen and weighted by, float32."""
    return jax.nn.sigmoid(logits) if c.router_scores == "sigmoid" else jax.nn.softmax(logits, axis=-1)


def choose_experts(scores: jax.Array, bias: jax.Array | None, c: PolicyConfig) -> jax.Array:
    """Returns the k experts of highest score (plus bias [E]), best first: [..., E] -> [..., k] int32.

    With groups (DeepSeek-V3, 2412.19437), only those of the groups whose two best experts have the highest sum.
    """
    ranked = jax.lax.stop_gradient(scores)
    if bias is not None:
        ranked += jax.lax.stop_gradient(bias).reshape((1,) * (scores.ndim - 1) + bias.shape)
    if c.router_groups > 1:
        grouped = ranked.reshape(*ranked.shape[:-1], c.router_groups, -1)
        worth = jnp.sum(jax.lax.top_k(grouped, 2)[0], axis=-1)  # [..., groups]
        kept = jax.lax.top_k(worth, c.router_groups_kept)[1]
        member = jnp.any(jax.nn.one_hot(kept, c.router_groups, dtype=bool), axis=-2)  # [..., groups]
        # Not zero: biased scores can be negative.
        ranked = jnp.where(member[..., None], grouped, -jnp.inf).reshape(ranked.shape)
    return jax.lax.top_k(ranked, c.experts_per_token)[1]


def compute_gates(scores: jax.Array, choices: jax.Array, c: PolicyConfig) -> jax.Array:
    """Returns the weights [..., k] of the chosen experts: their scores, renormalised and scaled as configured."""
    gates = jnp.take_along_axis(scores, choices, axis=-1)
    if c.renormalize_gates:
        gates = gates / (jnp.sum(gates, axis=-1, keepdims=True) + 1e-20)
    return gates * c.gate_scale


class RouterStats(NamedTuple):
    """Sums over the tokens of one layer, each as often as it counts, so that they add up over micro-batches.

    Attributes:
        tokens: number of tokens.
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


def router_stats(logits: jax.Array, scores: jax.Array, choices: jax.Array, counts: jax.Array) -> RouterStats:
    """Sums the router's statistics: logits and scores [B, T, E], choices [B, T, k], counts [B, T] of each token."""
    # Sigmoid scores become a distribution by their sum, as in DeepSeek-V3's sequence-wise loss.
    probabilities = scores / (jnp.sum(scores, axis=-1, keepdims=True) + 1e-20)
    weight = counts.astype(jnp.float32)
    chosen = jnp.sum(jax.nn.one_hot(choices, logits.shape[-1], dtype=jnp.float32), axis=-2)
    lse = jax.scipy.special.logsumexp(logits, axis=-1)
    entropy = -jnp.sum(jax.scipy.special.xlogy(probabilities, jax.lax.stop_gradient(probabilities)), axis=-1)
    return RouterStats(
        tokens=jnp.sum(weight),
        load=jnp.einsum("BTE,BT->E", chosen, weight),
        probability=jnp.einsum("BTE,BT->E", probabilities, weight),
        square_lse=jnp.sum(weight * lse**2),
        entropy=jax.lax.stop_gradient(jnp.sum(weight * entropy)),
    )


def _balance_switch(stats: RouterStats, k: int) -> jax.Array:
    """Fedus et al., 2101.03961: E * sum_e f_e P_e, with f_e the share of the assignments, averaged over the layers."""
    tokens = jnp.maximum(stats.tokens, 1.0)[:, None]
    share = jax.lax.stop_gradient(stats.load) / (k * tokens)
    return jnp.mean(share.shape[-1] * jnp.sum(share * stats.probability / tokens, axis=-1))


def _balance_hf(stats: RouterStats, k: int) -> jax.Array:
    """transformers' `load_balancing_loss_func`: f_e counts assignments a token (their sum is k), and f and P are means
    over the tokens of all layers together, so that the layers may balance each other."""
    tokens = jnp.maximum(jnp.sum(stats.tokens), 1.0)
    load = jax.lax.stop_gradient(jnp.sum(stats.load, axis=0)) / tokens
    return load.shape[-1] * jnp.sum(load * jnp.sum(stats.probability, axis=0) / tokens)


# By convention: at perfect balance "switch" is 1 and "hf" is k; at collapse they are E and E * k.
BALANCE_LOSSES: Mapping[str, Callable[[RouterStats, int], jax.Array]] = {
    "switch": _balance_switch,
    "hf": _balance_hf,
}


def z_loss(stats: RouterStats) -> jax.Array:
    """Router z-loss (Zoph et al., 2202.08906): mean over tokens and layers of logsumexp(logits)**2."""
    return jnp.mean(stats.square_lse / jnp.maximum(stats.tokens, 1.0))


def balance_step(params: dict[str, Any], config: PolicyConfig, load: jax.Array, rate: jax.Array) -> dict[str, Any]:
    """Moves the selection biases towards balance without a gradient (DeepSeek-V3, 2412.19437, section 2.1.2).

    Args:
        params: of the policy, which has selection biases.
        load: [mixture layers, E] tokens that used each expert, over all rows of the step.
        rate: how far each bias moves: up below the mean load, down above it.

    Returns:
        The parameters with b_e + rate * sign(mean load - load_e).
    """
    params = dict(params)
    for i, layer in enumerate(sorted(config.moe_layers)):
        name = f"layer_{layer}"
        moe = params[name]["moe"]
        step = rate * jnp.sign(jnp.mean(load[i]) - load[i])
        params[name] = params[name] | {"moe": moe | {"selection_bias": moe["selection_bias"] + step}}
    return params


def count_changed(live: jax.Array, recorded: jax.Array, counts: jax.Array) -> jax.Array:
    """Returns how many tokens have a recorded choice that the router would not make now, summed over layers.

    Args:
        live, recorded: [B, T, layers, k] experts, in any order; negative where nothing was recorded.
        counts: [B, T] how often each token counts.
    """
    again = jnp.any(recorded[..., :, None] == live[..., None, :], axis=-1)  # [B, T, layers, k]
    changed = jnp.any(~again & (recorded >= 0), axis=-1)
    return jnp.sum(jnp.where(changed, counts.astype(jnp.float32)[:, :, None], 0.0))
