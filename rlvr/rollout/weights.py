"""The weights as the engine uses them: laid out and typed for decoding, not for training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlvr import partition
from rlvr.policy.transformer import Params, Policy

# These are used in float32 whatever the type of the activations (`rlvr.policy`).
_FLOAT32 = ("embed", "head", "router", "scale", "sinks", "selection_bias")


def make_placement(policy: Policy, dtype: str, weights: str, mesh: Mesh) -> tuple[Policy, Callable[[Params], Params]]:
    """Returns the policy to sample with, and what turns the training's parameters into its own.

    Args:
        dtype: of the activations and of the matrices of the layers; "" for the policy's.
        weights: "sharded" or "gathered" (`rlvr.rollout.engine.EngineConfig`).
    """
    config = policy.config
    own = dataclasses.replace(config, dtype=dtype or config.dtype)
    narrow = jnp.dtype(own.dtype)
    gathered = weights == "gathered" and mesh.shape["fsdp"] > 1
    if narrow == jnp.float32 and not gathered:
        return (policy if own == config else Policy(own)), lambda params: params
    rules = {**partition.RULES, "embed": None} if gathered else partition.RULES

    def cast(params: Params) -> Params:
        def one(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array:
            wide = leaf.ndim == 1 or any(str(key.key).startswith(_FLOAT32) for key in path)
            return leaf if wide else leaf.astype(narrow)

        return jax.tree_util.tree_map_with_path(one, params)

    axes = policy.logical_axes()
    spread = jax.tree.map(
        lambda names: NamedSharding(mesh, PartitionSpec(*(None if a is None else rules[a] for a in names))),
        axes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    place = jax.jit(cast, out_shardings=spread)
    return Policy(own), place
