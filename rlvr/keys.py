"""All randomness of the project: counter-based keys, so there is no random state to save or to lose.

A key is `fold_in` of (seed, role, then whatever identifies the draw). Two draws share a key only if they are the
same draw, whatever shares the batch, whichever slot it sits in, and however often the process was restarted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Never renumber: old runs must repeat.
ROLES = {"init": 0, "rollout": 1, "evaluation": 2, "sample": 3, "adapters": 4, "curriculum": 5}


def make_key(seed: int, role: str, *counters: int | jax.Array) -> jax.Array:
    """Returns the key of (seed, role, *counters); each counter is an integer in [0, 2**32)."""
    key = jax.random.fold_in(jax.random.key(seed), ROLES[role])
    for counter in counters:
        key = jax.random.fold_in(key, jnp.uint32(counter))
    return key


def fold_in_rows(keys: jax.Array, counters: jax.Array) -> jax.Array:
    """Folds counters [S] into keys [S] (or into one key), row by row: returns keys [S]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0 if keys.ndim else None, 0))(keys, counters)


def draw_uniforms(seed: int, role: str, *counters: int, shape: tuple[int, ...]) -> np.ndarray:
    """Returns numbers in [0, 1), float64 of `shape`, of (seed, role, *counters): for what the host decides by itself.

    A role has one number of counters, each an integer in [0, 2**32).
    """
    sequence = np.random.SeedSequence((seed, ROLES[role], *counters))
    return np.random.Generator(np.random.Philox(sequence)).random(shape)
