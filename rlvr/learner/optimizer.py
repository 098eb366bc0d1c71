"""AdamW with warm-up, clipping by the global norm, and updates with non-finite gradients skipped and counted."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax

from rlvr import errors


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
        for name in ("learning_rate", "warmup_steps", "epsilon", "weight_decay"):
            errors.check_at_least(f"{field}.{name}", getattr(self, name), 0)
        for name in ("b1", "b2"):
            errors.check_between(f"{field}.{name}", getattr(self, name), 0.0, 1.0)
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


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns the transformation for a stage of `steps` optimizer steps.

    Its state's `total_notfinite` and `notfinite_count` tell the skipped updates, in all and in a row.
    """
    inner = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )
    # The trainer stops the run at max_skips; the wrapper itself must never let a non-finite update through.
    return optax.apply_if_finite(inner, max_consecutive_errors=2**31 - 1)


def state_shardings(optimizer: optax.GradientTransformation, params: Any, shardings: Any, other: Any) -> Any:
    """Returns the shardings of the optimizer's state: like the parameters where it mirrors them, else `other`."""
    state = jax.eval_shape(optimizer.init, params)
    return optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, state, shardings, transform_non_params=lambda _: other
    )
