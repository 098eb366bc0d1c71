"""Sparse upcycling (Komatsuzaki et al., 2212.05055): a dense policy becomes a mixture of the same function."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rlvr import errors
from rlvr.policy.config import PolicyConfig
from rlvr.policy.parameters import fan_in
from rlvr.policy.transformer import Params


def upcycle_config(
    config: PolicyConfig, *, experts: int, experts_per_token: int, layers: Sequence[int]
) -> PolicyConfig:
    """Returns the config of the mixture.

    Args:
        config: of a dense policy.
        experts, experts_per_token: E and k.
        layers: which layers become mixtures.

    Raises:
        ConfigError: the policy has mixtures already, a layer does not exist, none is named, or E or k cannot work.
    """
    if not layers:
        raise errors.ConfigError("layers is empty: at least one layer must become a mixture")
    if config.moe_layers:
        raise errors.ConfigError(
            f"policy.moe_layers={config.moe_layers}: only a policy without mixture layers can be upcycled"
        )
    for layer in layers:
        if not 0 <= layer < config.layers:
            raise errors.ConfigError(f"layers names layer {layer}; there are layers 0 to {config.layers - 1}")
    mixture = dataclasses.replace(
        config,
        family="",  # no family has such a shape
        moe_layers=tuple(sorted(layers)),
        renormalize_gates=True,
        experts=experts,
        experts_per_token=experts_per_token,
        expert_hidden=config.hidden,
    )
    mixture.validate()
    return mixture


def upcycle_params(
    params: Params, mixture: PolicyConfig, key: jax.Array, *, noise: float = 0.0, router_scale: float = 1.0
) -> Params:
    """Returns the parameters of the mixture: every expert a copy of the dense layer, the router random.

    The gates of a token sum to one, so without noise the mixture computes what the dense policy computed, whatever
    the router says.

    Args:
        params: of the dense policy.
        mixture: from `upcycle_config`.
        key: of the router's initialisation and of the noise.
        noise: standard deviation of what is added to each expert's matrices, as a share of the matrix's own.
        router_scale: the router's logits have about this standard deviation, times the norm's scale.
    """
    out: Params = dict(params)
    for layer in mixture.moe_layers:
        name = f"layer_{layer}"
        block: dict[str, Any] = dict(params[name])
        router_key, *keys = jax.random.split(jax.random.fold_in(key, layer), 4)
        router = fan_in(0)(router_key, (mixture.dim, mixture.experts), jnp.float32) * router_scale
        moe = {"router": router}
        for matrix, own in zip(("gate", "up", "down"), keys, strict=True):
            dense = jnp.asarray(block["mlp"][matrix])
            copies = jnp.broadcast_to(dense[None], (mixture.experts, *dense.shape))
            if noise:
                copies = copies + noise * jnp.std(dense) * jax.random.normal(own, copies.shape)
            moe[matrix] = copies
        del block["mlp"]
        out[name] = block | {"moe": moe}
    return out
