"""Estimators of KL(policy || reference) from sampled tokens (Schulman, 2020), x = log policy - log reference; what the
reference is, and how the coefficient follows a target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from rlvr import errors

if TYPE_CHECKING:
    from rlvr.algo.objectives import ObjectiveConfig

LOG_RATIO_LIMIT = 20.0


def k1(x: Any) -> Any:
    """x: unbiased; for rewards and reports. As a loss its gradient is zero in expectation, so it is none here."""
    return x


def k2(x: Any) -> Any:
    """x**2 / 2: biased, but on policy its gradient is that of KL(policy || reference)."""
    return 0.5 * x**2


def k3(x: Any) -> Any:
    """exp(-x) + x - 1: unbiased and never negative; as a loss its gradient is that of KL(reference || policy)."""
    # Of a host's array numpy makes it: outside jit JAX would compile it, and keep it, for every number of tokens.
    xp = x.__array_namespace__()
    return xp.expm1(xp.clip(-x, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)) + x


def k3_plus(x: Any) -> Any:
    """The value of k3 with the gradient of k2: that of KL(policy || reference)."""
    return jax.lax.stop_gradient(k3(x) - k2(x)) + k2(x)


def k3_forward(x: Any) -> Any:
    """exp(x) - 1 - x, of tokens that the *reference* drew: value and gradient are those of KL(reference || policy)."""
    return jnp.expm1(jnp.clip(x, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)) - x


def k3_weighted(x: Any, log_ratio: Any) -> Any:
    """r k3 with r = policy / old policy, differentiated too (DeepSeek-V3.2, 2512.02556): unbiased off policy, and its
    gradient is that of KL(policy || reference)."""
    return jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)) * k3(x)


# Each takes (x, log policy / old policy). k1 has no place here: see above.
LOSS_ESTIMATORS: dict[str, Callable[[Any, Any], Any]] = {
    "k2": lambda x, log_ratio: k2(x),
    "k3": lambda x, log_ratio: k3(x),
    "k3+": lambda x, log_ratio: k3_plus(x),
    "k3_is": k3_weighted,
}

# As a part of the reward, by the log-probs as sampled: in the scalar reward of a sample, or taken off the advantage of
# each token as what is still to come (REINFORCE++'s reward-to-go).
REWARD_ESTIMATORS = ("k1_in_reward", "k1_to_go")

REFERENCES = ("fixed", "synced", "absent")

# How far from its target a KL may move the coefficient in one step, as PPO has it (Ziegler et al., 1909.08593).
LARGEST_ERROR = 0.2


@dataclasses.dataclass
class ReferenceConfig:
    """The policy that every KL is taken against.

    Attributes:
        update: "fixed": the policy at the start of the RL; loaded where a KL is part of the objective, and for the
            report at the steps of an evaluation. "synced": it begins there and follows, reference <- alpha policy +
            (1 - alpha) reference (TR-DPO's soft update, 2404.09656); of a run with adapters the adapters' matrices
            are what is mixed. "absent": none is ever loaded.
        interval: RL steps between two updates of a synced one.
        alpha: see `update`; 1 replaces the reference.
    """

    update: str = "fixed"
    interval: int = 512
    alpha: float = 0.6

    def validate(self, field: str) -> None:
        """Raises ConfigError naming the field that cannot work."""
        errors.check_choice(f"{field}.update", self.update, REFERENCES)
        errors.check_at_least(f"{field}.interval", self.interval, 1)
        errors.check_between(f"{field}.alpha", self.alpha, 1e-9, 1.0)


def adapt_kl_coef(coef: float, kl: float, samples: int, config: ObjectiveConfig) -> float:
    """Returns the coefficient of the next step: coef (1 + clip(kl / kl_target - 1, -0.2, 0.2) samples / kl_horizon).

    PPO's controller for language models (Ziegler et al., 1909.08593); without `kl_target` it is the same.

    Args:
        coef: of this step.
        kl: mean over the step's tokens, nats.
        samples: sequences of the step.
    """
    if not config.kl_target:
        return coef
    error = min(max(kl / config.kl_target - 1.0, -LARGEST_ERROR), LARGEST_ERROR)
    return coef * (1.0 + error * samples / config.kl_horizon)
