"""What the learner carries from step to step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from rlvr import partition
from rlvr.learner.optimizer import state_shardings
from rlvr.policy.transformer import Params, Policy


class TrainState(NamedTuple):
    """Parameters and optimizer state; the step is counted by the trainer."""

    params: Params
    opt_state: Any


def state_sharding_tree(policy: Policy, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the TrainState of NamedShardings on a mesh."""
    params = partition.shardings(mesh, policy.logical_axes())
    other = partition.replicated(mesh)
    return TrainState(params, state_shardings(optimizer, policy.abstract_params(), params, other))


def abstract_state(policy: Policy, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the TrainState of ShapeDtypeStructs with shardings: the target of a restore."""
    params = policy.abstract_params()
    shapes = TrainState(params, jax.eval_shape(optimizer.init, params))
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        state_sharding_tree(policy, optimizer, mesh),
    )


def fresh_state(policy: Policy, optimizer: optax.GradientTransformation, params: Params, mesh: Mesh) -> TrainState:
    """Returns the state at the start of a stage: given parameters, empty optimizer state."""
    shardings = state_sharding_tree(policy, optimizer, mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    return TrainState(params, opt_state)
