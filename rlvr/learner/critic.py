"""The critic: a linear map from the policy's last hidden state to the value of a position, learned beside the policy.

It is no part of the policy. Its parameters and its optimizer's state are a field of the learner's state and an item of
checkpoints of their own, so that sampling, exports and start policies know nothing of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rlvr import errors, partition
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.value import clipped_value_loss
from rlvr.learner.batch import Row, TrainBatch
from rlvr.learner.logprobs import Metrics, run_rows
from rlvr.learner.optimizer import OptimizerConfig, state_shardings
from rlvr.learner.scoring import Layout, take_row
from rlvr.masked import masked, masked_sum
from rlvr.policy.transformer import Params, Policy

AXES: Params = {"kernel": ("embed",), "bias": ()}


@dataclasses.dataclass
class CriticConfig:
    """How the critic of an objective with advantage "gae" learns.

    Attributes:
        optimizer: of the critic's own parameters; those of the policy have the policy's.
        pretrain_steps: so many RL steps, the first ones, teach the critic only: the policy stays as it is
            (VC-PPO, 2503.01491; VAPO, 2504.05118).
    """

    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig(learning_rate=1e-3))
    pretrain_steps: int = 0

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        self.optimizer.validate("critic.optimizer")
        errors.check_at_least("critic.pretrain_steps", self.pretrain_steps, 0)


class Critic(NamedTuple):
    """The critic's parameters, {"kernel": [D], "bias": []}, and its optimizer's state."""

    params: Params
    opt_state: Any


def critic_shapes(policy: Policy) -> Params:
    """Returns the shapes and dtypes of the critic's parameters."""
    shapes = {"kernel": (policy.config.dim,), "bias": ()}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def critic_shardings(policy: Policy, optimizer: optax.GradientTransformation, mesh: Mesh) -> Critic:
    """Returns the Critic of NamedShardings on a mesh."""
    params = partition.shardings(mesh, AXES)
    shapes, other = critic_shapes(policy), partition.replicated(mesh)
    return Critic(params, state_shardings(optimizer, shapes, params, other))


def abstract_critic(policy: Policy, optimizer: optax.GradientTransformation, mesh: Mesh) -> Critic:
    """Returns the Critic of ShapeDtypeStructs with shardings."""
    shapes = critic_shapes(policy)
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        Critic(shapes, jax.eval_shape(optimizer.init, shapes)),
        critic_shardings(policy, optimizer, mesh),
    )


def fresh_critic(policy: Policy, optimizer: optax.GradientTransformation, mesh: Mesh) -> Critic:
    """Returns a critic that values everything at 0, the same on any mesh."""

    def make() -> Critic:
        params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), critic_shapes(policy))
        return Critic(params, optimizer.init(params))

    critic: Critic = jax.jit(make, out_shardings=critic_shardings(policy, optimizer, mesh))()
    return critic


def token_values(critic: Params, hidden: jax.Array, sources: jax.Array) -> jax.Array:
    """Returns the values [R, S] of the states before the sampled tokens, float32.

    Args:
        critic: its parameters.
        hidden: [R, T, D].
        sources: [R, S] places in T of the tokens before the sampled ones.
    """
    values = jnp.einsum("RTD,D->RT", hidden.astype(jnp.float32), critic["kernel"]) + critic["bias"]
    return jnp.take_along_axis(values, sources, axis=1)


def value_loss(
    objective: ObjectiveConfig, values: jax.Array, micro: TrainBatch, sampled: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Returns (the value loss of a micro-batch with its coefficient, sums for the metrics).

    It is a mean over all sampled tokens of the step; those that are not learned from count 0 (`Row.value_weight`).

    Args:
        values: [R, S], with gradient.
        sampled: number of sampled tokens of the step.
    """
    before, returns = (masked(x, micro.mask) for x in (micro.values, micro.returns))
    losses, clipped = clipped_value_loss(masked(values, micro.mask), before, returns, objective.value.clip)
    loss = masked_sum(losses * micro.value_weight, micro.mask) / sampled
    sums = {"loss/value": loss, "clip/value": masked_sum(clipped.astype(jnp.float32), micro.mask)}
    return objective.value.coef * loss, sums


Appraiser = Callable[..., list[np.ndarray]]


def make_appraiser(
    policy: Policy,
    layout: Layout,
    objective: ObjectiveConfig,
    join: Callable[[Params, Params | None], Params] = lambda params, frozen: params,
) -> Appraiser:
    """Returns `appraise(params, critic, rows, frozen=None)`: the values [C] before each token of each row.

    If the objective bootstraps, a row that was cut off has one more: [C + 1], the last after its last token.

    Args:
        join: see `rlvr.learner.trainable.Trainable`.
    """
    replay = "rollout" if objective.routing == "rollout" else "live"

    def step(params: Params, critic: Params, frozen: Params | None, batch: TrainBatch) -> jax.Array:
        hidden = run_rows(policy, join(params, frozen), batch, batch.replay(replay)).hidden
        return token_values(critic, hidden, batch.sources)

    appraise_step = jax.jit(step, out_shardings=partition.replicated(layout.mesh))

    def appraise(params: Params, critic: Params, rows: Sequence[Row], frozen: Params | None = None) -> list[np.ndarray]:
        bare = [_strip(row, row.truncated and objective.value.bootstrap) for row in rows]
        batches, places = layout.lay_out(bare)
        values = [partition.host_value(appraise_step(params, critic, frozen, layout.put(b))) for b in batches]
        return [take_row(values, row, at) for row, at in zip(bare, places, strict=True)]

    return appraise


def _strip(row: Row, extend: bool) -> Row:
    """Returns a row of its tokens alone; extended by one, which is not run, the last sampled one is run too."""
    completion, choices = row.completion, row.choices
    if extend:
        completion = np.append(completion, np.int32(0))
        if choices is not None:
            choices = np.concatenate([choices, np.full_like(choices[:1], -1)])
    return Row(row.prompt, completion, np.zeros(len(completion), np.float32), 0.0, row.group, choices)
