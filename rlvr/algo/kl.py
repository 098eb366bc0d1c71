"""Estimators of KL(policy || reference) from sampled tokens (Schulman, 2020). x = log policy - log reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

LOG_RATIO_LIMIT = 20.0


def k1(x: Any) -> Any:
    """x: unbiased; for rewards and reports. As a loss its gradient is zero in expectation, so it is none here."""
    return x


def k2(x: Any) -> Any:
    """x**2 / 2: biased, but on policy its gradient is that of KL(policy || reference)."""
    return 0.5 * x**2


def k3(x: Any) -> Any:
    """exp(-x) + x - 1: unbiased and never negative; as a loss its gradient is that of KL(reference || policy)."""
    return jnp.expm1(jnp.clip(-x, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)) + x


def k3_plus(x: Any) -> Any:
    """The value of k3 with the gradient of k2: that of KL(policy || reference)."""
    return jax.lax.stop_gradient(k3(x) - k2(x)) + k2(x)


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
