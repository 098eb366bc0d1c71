"""What the learner carries from step to step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from rlvr import partition
from rlvr.learner.critic import Critic
from rlvr.learner.descent import join_parts, part_of
from rlvr.learner.optimizer import state_shardings
from rlvr.learner.trainable import Trainable
from rlvr.policy.transformer import Params

# What has gradients: the trained parameters, and those of the critic if there is one.
Weights = tuple[Params, Params | None]


class TrainState(NamedTuple):
    """The trained parameters, the optimizer's state, and the critic, if there is one; the trainer counts the steps."""

    params: Params
    opt_state: Any
    critic: Critic | None = None

    @property
    def weights(self) -> Weights:
        """What has gradients."""
        return self.params, None if self.critic is None else self.critic.params


def state_sharding_tree(
    trainable: Trainable, optimizer: optax.GradientTransformation, mesh: Mesh, moments: str = "device"
) -> TrainState:
    """Returns the TrainState of NamedShardings on a mesh, without critic; `moments`: see `UpdateConfig`."""
    params = partition.shardings(mesh, trainable.axes)
    other = partition.replicated(mesh)
    return TrainState(params, state_shardings(optimizer, trainable.shapes, params, other, moments))


def abstract_state(
    trainable: Trainable, optimizer: optax.GradientTransformation, mesh: Mesh, moments: str = "device"
) -> TrainState:
    """Returns the TrainState of ShapeDtypeStructs with shardings, without critic: the target of a restore."""
    shapes = TrainState(trainable.shapes, jax.eval_shape(optimizer.init, trainable.shapes))
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        state_sharding_tree(trainable, optimizer, mesh, moments),
    )


def fresh_state(
    trainable: Trainable,
    optimizer: optax.GradientTransformation,
    params: Params,
    mesh: Mesh,
    moments: str = "device",
) -> TrainState:
    """Returns the state at the start of a stage: given parameters, empty optimizer state, no critic."""
    shardings = state_sharding_tree(trainable, optimizer, mesh, moments)
    # A part at a time: what is to rest in the host's memory is made on the devices.
    states = {
        name: jax.jit(optimizer.init, out_shardings=part_of(shardings.opt_state, name))(part_of(params, name))
        for name in params
    }
    return TrainState(params, join_parts(states))
