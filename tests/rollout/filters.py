"""Samplings for tests."""

import jax.numpy as jnp

from rlvr.rollout.sampling import Sampling


def at_temperature(temperature: float, *, top_k: int = 1 << 30, top_p: float = 1.0, min_p: float = 0.0) -> Sampling:
    """Returns a sampling with everything that is not given filtering nothing."""
    return Sampling(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p))
