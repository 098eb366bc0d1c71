"""Values of positions: advantages and returns of tokens made from them (host, float64), and the loss they learn by."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rlvr import errors


@dataclasses.dataclass
class ValueConfig:
    """What an objective with advantage "gae" makes of a critic's values.

    Attributes:
        gamma: discount of a token.
        lam: lambda of the policy's advantages.
        lam_returns: lambda of the returns that the critic learns (VAPO, 2504.05118: 1, that is the rewards to come).
        length_alpha: > 0 makes the policy's lambda 1 - 1 / max(length_alpha * L, 1) for a sequence of L tokens (VAPO:
            0.05); 0 is off.
        bootstrap: whether what a sequence that the budget cut off has after its last token is V there, instead of its
            reward; otherwise it ends there like any other. Where most samples are cut off, their values are then
            anchored to nothing.
        clip: values that are further than this from those before the update learn no more; 0 is off.
        coef: of the value loss, through which the policy's layers learn from it too.
    """

    gamma: float = 1.0
    lam: float = 0.95
    lam_returns: float = 0.95
    length_alpha: float = 0.0
    bootstrap: bool = False
    clip: float = 0.2
    coef: float = 0.1

    def validate(self, field: str) -> None:
        """Raises ConfigError naming the field that cannot work."""
        for name in ("gamma", "lam", "lam_returns"):
            errors.check_between(f"{field}.{name}", getattr(self, name), 0.0, 1.0)
        for name in ("length_alpha", "clip"):
            errors.check_at_least(f"{field}.{name}", getattr(self, name), 0.0)
        if not self.coef > 0:
            raise errors.ConfigError(f"{field}.coef={self.coef} must be positive: without it the values learn nothing")

    def policy_lam(self, length: int) -> float:
        """Returns the lambda of the policy's advantages in a sequence of so many tokens."""
        return 1.0 - 1.0 / max(self.length_alpha * length, 1.0) if self.length_alpha else self.lam


def estimate_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    gamma: float,
    lam: float,
    after: float = 0.0,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the advantages [C] of a sequence's tokens by GAE (1506.02438).

    A_t = d_t + gamma lam A_{t+1} with d_t = r_t + gamma V_{t+1} - V_t. The returns are A + V.

    Args:
        rewards: [C] for each token.
        values: [C] of the state before each token.
        after: value of the state after the last one.
        mask: [C] which tokens are the policy's own. The others are stepped over: their advantage is 0, and the value
            and the advantage of what follows are carried across them as if they were not there.
    """
    out = np.zeros(len(rewards))
    following, carried = after, 0.0
    for t in range(len(rewards) - 1, -1, -1):
        if mask is None or mask[t]:
            carried = rewards[t] + gamma * following - values[t] + gamma * lam * carried
            following, out[t] = values[t], carried
    return out


def clipped_value_loss(
    values: jax.Array, before: jax.Array, returns: jax.Array, clip: float
) -> tuple[jax.Array, jax.Array]:
    """0.5 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) of each token; without the second if c is 0.

    Args:
        values: V, with gradient.
        before: V_old, from before the update.
        returns: R.
        clip: c.

    Returns:
        (losses, where the clipped one is the larger).
    """
    free = jnp.square(values - returns)
    if not clip:
        return 0.5 * free, jnp.zeros(free.shape, bool)
    bounded = jnp.square(before + jnp.clip(values - before, -clip, clip) - returns)
    return 0.5 * jnp.maximum(free, bounded), bounded > free
