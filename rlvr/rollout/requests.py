"""What the engine is asked for: the requests checked, and the key of each."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlvr import errors
from rlvr.rollout.config import EngineConfig
from rlvr.types import Request


def check_requests(requests: Sequence[Request], config: EngineConfig, max_tokens: int | None) -> dict[int, int]:
    """Returns the budget of each request by its index; `max_tokens` is that of those which have none of their own.

    Raises:
        DataError: a prompt is empty or too long.
        ConfigError: a budget out of range.
    """
    default = config.max_new_tokens if max_tokens is None else max_tokens
    errors.check_between("max_tokens", default, 1, config.max_new_tokens)
    limits: dict[int, int] = {}
    for request in requests:
        check_prompt(request.prompt, config.max_prompt_tokens, f"request {request.index}")
        limit = default if request.max_tokens is None else request.max_tokens
        errors.check_between(f"max_tokens of request {request.index}", limit, 1, config.max_new_tokens)
        limits[request.index] = limit
    if len(limits) < len(requests):
        raise ValueError("two requests have the same index: completions are matched by it")
    return limits


def check_prompt(prompt: Sequence[int], limit: int, name: str) -> None:
    """Raises DataError if a prompt is empty or longer than the budget."""
    if not 1 <= len(prompt) <= limit:
        raise errors.DataError(
            f"the prompt of {name} has {len(prompt)} tokens; accepted: 1 to max_prompt_tokens={limit}. "
            "Raise engine.max_prompt_tokens or remove the row"
        )


def request_keys(requests: Sequence[Request], key: jax.Array) -> jax.Array:
    """Returns the key data [n or more, 2] of the requests' sequences, in their order."""
    padded = 1 << max(len(requests) - 1, 0).bit_length()  # few shapes, few compilations
    identity = np.zeros((4, padded), np.uint32)
    for i, r in enumerate(requests):
        identity[:, i] = (r.prompt_id, r.sample, r.seed or 0, r.seed is not None)
    return _fold_identities(key, identity)


@jax.jit
def _fold_identities(key: jax.Array, identity: jax.Array) -> jax.Array:
    def one(prompt_id: jax.Array, sample: jax.Array, seed: jax.Array, seeded: jax.Array) -> jax.Array:
        base = jnp.where(seeded > 0, jax.random.key_data(jax.random.key(seed)), jax.random.key_data(key))
        own = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(base), prompt_id), sample)
        return jax.random.key_data(own)

    return jax.vmap(one)(*identity)
