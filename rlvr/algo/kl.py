"""Estimators of KL(policy || reference) from sampled tokens (Schulman, 2020). x = log policy - log reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


# k1 has no place here: see above.
LOSS_ESTIMATORS: dict[str, Callable[[Any], Any]] = {"k2": k2, "k3": k3}
