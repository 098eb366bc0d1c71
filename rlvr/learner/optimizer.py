"""AdamW with warm-up, clipping by the global norm, and updates with non-finite gradients skipped and counted."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlvr import errors, partition


@dataclasses.dataclass
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 1711.05101).

    Attributes:
        learning_rate: peak.
        warmup_steps: optimizer steps of linear warm-up, from learning_rate / (warmup_steps + 1).
        decay: "constant", "cosine" or "linear" (to zero just after the last step).
        b1, b2, epsilon, weight_decay: of AdamW; decay applies to matrices only.
        max_grad_norm: the gradient's global norm is clipped to this.
        max_skips: after so many consecutive updates skipped for non-finite gradients the run goes back or ends
            (`RollbackConfig`).
    """

    learning_rate: float = 1e-6
    warmup_steps: int = 0
    decay: str = "constant"
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_skips: int = 5

    def validate(self, field: str) -> None:
        """Raises ConfigError naming the field that cannot work."""
        errors.check_choice(f"{field}.decay", self.decay, ("constant", "cosine", "linear"))
        for name in ("learning_rate", "warmup_steps", "weight_decay"):
            errors.check_at_least(f"{field}.{name}", getattr(self, name), 0)
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise errors.ConfigError(f"{field}.{name}={getattr(self, name)} must be at least 0 and less than 1")
        if not self.epsilon > 0:
            raise errors.ConfigError(f"{field}.epsilon={self.epsilon} must be positive: no gradient would be 0 / 0")
        if not self.max_grad_norm > 0:
            raise errors.ConfigError(f"{field}.max_grad_norm={self.max_grad_norm} must be positive")
        errors.check_at_least(f"{field}.max_skips", self.max_skips, 1)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate over `steps` optimizer steps."""
    after = max(steps - config.warmup_steps, 1)
    peak = config.learning_rate
    decays = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, after),
        "linear": optax.linear_schedule(peak, 0.0, after),
    }
    warmup = optax.linear_schedule(peak / (config.warmup_steps + 1), peak, config.warmup_steps)
    return optax.join_schedules([warmup, decays[config.decay]], [config.warmup_steps])


class Survey(NamedTuple):
    """What a step must know of all gradients together: their global norm, and whether every one of them is finite."""

    norm: jax.Array
    finite: jax.Array


def take_survey(gradients: Any) -> Survey:
    """Returns the survey of a tree of gradients."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradients)]
    return Survey(optax.tree.norm(gradients), jnp.all(jnp.array(finite)))


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation for a stage of `steps` optimizer steps.

    Its state's `total_notfinite` and `notfinite_count` tell the skipped updates, in all and in a row. `update` takes
    the `survey` of all gradients where it gets a part of them only.
    """
    inner = optax.chain(
        _clip(config.max_grad_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )

    def init(params: Any) -> optax.ApplyIfFiniteState:
        none = jnp.zeros([], jnp.int32)
        return optax.ApplyIfFiniteState(none, jnp.array(True), none, inner.init(params))

    def update(
        updates: Any, state: optax.ApplyIfFiniteState, params: Any = None, *, survey: Survey | None = None, **_: Any
    ) -> tuple[Any, optax.ApplyIfFiniteState]:
        survey = survey or take_survey(updates)
        updates, moved = inner.update(updates, state.inner_state, params, survey=survey)

        # Not a branch: so it is part of the same pass over the moments, which are in the same place before and after.
        def unless_skipped(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(survey.finite, a, b), new, old)

        counts = count_skips(state.notfinite_count, survey), count_skips(state.total_notfinite, survey, again=True)
        kept = unless_skipped(moved, state.inner_state)
        skipped = jax.tree.map(jnp.zeros_like, updates)
        after = optax.ApplyIfFiniteState(counts[0], survey.finite, counts[1], kept)
        return unless_skipped(updates, skipped), after

    return optax.GradientTransformationExtraArgs(init, update)


def count_skips(count: jax.Array, survey: Survey, *, again: bool = False) -> jax.Array:
    """Returns a count of skipped updates after one more: of those in a row, or of all of them (`again`)."""
    return jnp.where(survey.finite, count if again else jnp.zeros_like(count), optax.safe_increment(count))


def _clip(limit: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    """Returns the clipping by the norm of a survey."""

    def update(updates: Any, state: Any, params: Any = None, *, survey: Survey, **_: Any) -> tuple[Any, Any]:
        del params
        within = survey.norm < limit
        return jax.tree.map(lambda g: jnp.where(within, g, g / survey.norm.astype(g.dtype) * limit), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def state_shardings(
    optimizer: optax.GradientTransformation, params: Any, shardings: Any, other: Any, moments: str = "device"
) -> Any:
    """Returns the shardings of the optimizer's state: like the parameters where it mirrors them, else `other`.

    Args:
        moments: where what mirrors them rests; see `rlvr.learner.update.UpdateConfig`.
    """
    state = jax.eval_shape(optimizer.init, params)
    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: partition.in_memory(sharding, moments),
        state,
        shardings,
        transform_non_params=lambda _: other,
    )
