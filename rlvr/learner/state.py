"""What the learner carries from step to step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from rlvr import partition
from rlvr.learner.critic import Critic
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


def state_sharding_tree(trainable: Trainable, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the TrainState of NamedShardings on a mesh, without critic."""
    params = partition.shardings(mesh, trainable.axes)
    other = partition.replicated(mesh)
    return TrainState(params, state_shardings(optimizer, trainable.shapes, params, other))


def abstract_state(trainable: Trainable, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the TrainState of ShapeDtypeStructs with shardings, without critic: the target of a restore."""
    shapes = TrainState(trainable.shapes, jax.eval_shape(optimizer.init, trainable.shapes))
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        state_sharding_tree(trainable, optimizer, mesh),
    )


def fresh_state(
    trainable: Trainable, optimizer: optax.GradientTransformation, params: Params, mesh: Mesh
) -> TrainState:
    """Returns the state at the start of a stage: given parameters, empty optimizer state, no critic."""
    shardings = state_sharding_tree(trainable, optimizer, mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    return TrainState(params, opt_state)
