"""From verdicts to advantages under jit; `rlvr.credit` does the same on the host, with the same functions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlvr.algo import lengths
from rlvr.algo.advantages import ADVANTAGES, Groups, whiten
from rlvr.config import ExperimentConfig
from rlvr.program.lanes import Scalars
from rlvr.program.rollout import Samples
from rlvr.program.verifier import Verdicts


class Credit(NamedTuple):
    """Of B samples.

    Attributes:
        rewards: [B].
        advantages: [B, C] of each token; zeros past the end.
    """

    rewards: jax.Array
    advantages: jax.Array


def assign_credit(
    config: ExperimentConfig, scalars: Scalars, samples: Samples, verdicts: Verdicts, reference: jax.Array | None
) -> Credit:
    """Compares the samples of each group; see `rlvr.credit.assign_credit`.

    Args:
        config: with the scalars of `lanes.COMPUTED` put in.
        reference: [B, C] log-probs under the start policy, where the objective has them in the reward.
    """
    objective, grid = config.objective, (-1, config.rollout.group_size)
    counts, budget = samples.lengths, samples.tokens.shape[1]
    sampled = jnp.arange(budget)[None, :] < counts[:, None]
    everything = jnp.ones(counts.shape, bool)
    rewards = shape_rewards(config, scalars, counts, verdicts.correct)
    drift = None
    if objective.kl in ("k1_in_reward", "k1_to_go"):
        assert reference is not None
        drift = objective.kl_coef * jnp.where(sampled, samples.logprobs - reference, 0.0)
    if objective.kl == "k1_in_reward" and drift is not None:
        rewards -= jnp.sum(drift, axis=1)
    groups = Groups(rewards.reshape(grid), everything.reshape(grid), counts.reshape(grid))
    each = ADVANTAGES[objective.advantage](groups, objective).reshape(-1)
    advantages = jnp.where(sampled, each[:, None], 0.0)
    if objective.kl == "k1_to_go" and drift is not None:
        advantages = jnp.where(sampled, advantages - jnp.cumsum(drift[:, ::-1], axis=1)[:, ::-1], 0.0)
    if objective.whiten != "none":
        share = jnp.ones(counts.shape) if objective.whiten == "tokens" else 1.0 / jnp.maximum(counts, 1)
        shares = jnp.where(sampled, share[:, None], 0.0)
        advantages = whiten(advantages.reshape(-1), shares.reshape(-1)).reshape(advantages.shape)
    if config.reward.length.drop_truncated:
        advantages = jnp.where(samples.stopped[:, None], advantages, 0.0)
    return Credit(rewards, advantages)


def shape_rewards(config: ExperimentConfig, scalars: Scalars, counts: jax.Array, right: jax.Array) -> jax.Array:
    """Returns the rewards [B] with what the samples' lengths change; see `rlvr.credit.shape_rewards`."""
    own, budget = config.reward.length, config.engine.max_new_tokens
    shaped = right.astype(jnp.float32)
    if own.cosine:
        shaped = lengths.shape_cosine(counts, right, budget, own)
    if own.linear:
        grid = (-1, config.rollout.group_size)
        given = shaped.reshape(grid), counts.reshape(grid), jnp.ones(shaped.reshape(grid).shape, bool)
        shaped = lengths.penalise_linearly(*given, scalars["reward.length.linear"]).reshape(-1)
    if own.overlong_buffer:
        weight = scalars["reward.length.overlong_weight"]
        shaped += weight * lengths.punish_overlong(counts, budget, own.overlong_buffer)
    return shaped
