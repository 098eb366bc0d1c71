"""Sampling over strips of a fixed length: the engine's own prefill and decode steps, one dispatch of all tokens."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlvr.policy.cache import make_strips
from rlvr.policy.transformer import Params, Policy
from rlvr.program.tasks import TaskArrays
from rlvr.rollout import steps
from rlvr.rollout.sampling import Sampling


class Samples(NamedTuple):
    """B = P * G completions, sample s of task p at p * G + s.

    Attributes:
        tokens, logprobs: [B, C]; zeros past the end.
        lengths: [B] int32.
        stopped: [B] bool, whether the last token is a stop token.
    """

    tokens: jax.Array
    logprobs: jax.Array
    lengths: jax.Array
    stopped: jax.Array


def sample_tasks(
    policy: Policy,
    params: Params,
    tasks: TaskArrays,
    key: jax.Array,
    *,
    samples: int,
    temperature: jax.Array,
    budget: int,
    stop_ids: tuple[int, ...],
) -> Samples:
    """Samples each task `samples` times, up to `budget` tokens, as `rlvr.rollout.engine.Engine` does with this key.

    Args:
        tasks: P tasks.
        temperature: scalar; 0 is greedy.
    """
    prefilled = steps.prefill(policy, params, tasks.prompts)
    strips = tuple(make_strips(prefix, samples, tasks.prompts.shape[1] + budget) for prefix in prefilled.prefixes)
    last = jnp.take_along_axis(tasks.prompts, tasks.lengths[:, None] - 1, axis=1)[:, 0]
    token, position, ids = (jnp.repeat(x, samples) for x in (last, tasks.lengths - 1, tasks.ids))
    number = jnp.tile(jnp.arange(samples, dtype=jnp.uint32), len(tasks.lengths))
    keys = jax.vmap(lambda i, s: jax.random.fold_in(jax.random.fold_in(key, i), s))(ids, number)
    count = len(token)
    rows = steps.Rows(
        token=token,
        position=position,
        sampled=jnp.zeros(count, jnp.int32),
        limit=jnp.full(count, budget, jnp.int32),
        keys=jax.random.key_data(keys),
        table=None,
    )
    scalar = jnp.asarray(temperature, jnp.float32)
    sampling = Sampling(scalar, jnp.int32(policy.config.vocab_size), jnp.float32(1.0), jnp.float32(0.0))
    _, out = steps.decode(policy, params, strips, rows, sampling, stop_ids, budget, filtered=False)
    sampled = jnp.arange(budget)[None, :] < out.taken[:, None]
    return Samples(jnp.where(sampled, out.tokens, 0), jnp.where(sampled, out.logprobs, 0.0), out.taken, out.stopped)
