"""The optimizer steps of a rollout under jit: the learner's own update step, on rows of a fixed layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlvr.algo.aggregation import AGGREGATIONS
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.selection import entropy_quantile, is_uncertain
from rlvr.learner.batch import TrainBatch
from rlvr.learner.logprobs import Metrics, run_rows, token_statistics
from rlvr.learner.loss import Totals
from rlvr.learner.optimizer import OptimizerConfig, make_optimizer
from rlvr.learner.state import TrainState
from rlvr.learner.update import make_update_step
from rlvr.policy.transformer import Params, Policy
from rlvr.program.rows import lay_out

Rows = dict[str, jax.Array]  # prompts [P, T], prompt_lengths [P]; all else [B, ...] of the sequences


def score(
    policy: Policy, params: Params, rows: Rows, *, samples: int, temperature: jax.Array, entropies: bool = False
) -> tuple[jax.Array, ...]:
    """Returns the log-probs [B, C] of completions, and their entropies if they are wanted; garbage past their ends."""
    batch = _place(rows, samples, {})
    hidden = run_rows(policy, params, batch).hidden
    scored = (batch.sources, batch.targets, batch.columns(), temperature, batch.mask.size)
    found = token_statistics(policy, params, hidden, *scored, entropies=entropies)
    return tuple(x.reshape(rows["completions"].shape) for x in found)


def make_learner(
    policy: Policy,
    objective: ObjectiveConfig,
    optimizer: OptimizerConfig,
    *,
    steps: int,
    minibatches: int,
    samples: int,
    temperature: jax.Array,
) -> tuple[Callable[[Params], TrainState], Callable[..., tuple[TrainState, Metrics]]]:
    """Returns (fresh, learn) of a stage of learning, both for use under jit.

    `fresh(params)` is the state at its start. `learn(state, rows, entropy_coef)` takes the optimizer steps of a rollout
    and returns (state, metrics), as `rlvr.learner.learner.Learner.update` does. The rows have besides `completions`
    [B, C] and `lengths` [B] the fields `old_logprobs`, `advantages` and, where they are known, `reference_logprobs`,
    [B, C] each.

    Args:
        objective, optimizer: may hold traced scalars (`rlvr.program.lanes`).
        steps: optimizer steps in all.
        minibatches, samples: as `UpdateConfig.minibatches`, and G.
    """
    transformation = make_optimizer(optimizer, steps)

    def fresh(params: Params) -> TrainState:
        return TrainState(params, transformation.init(params))

    def minibatch(state: TrainState, given: tuple[Rows, jax.Array]) -> tuple[TrainState, Metrics]:
        rows, entropy_coef = given
        lengths, budget = rows["lengths"], rows["completions"].shape[1]
        groups = np.repeat(np.arange(len(rows["prompt_lengths"])), samples)
        weights = AGGREGATIONS[objective.aggregation](lengths, groups, budget)
        run = jnp.repeat(rows["prompt_lengths"], samples) + jnp.maximum(lengths - 1, 0)
        count, kl_coef = jnp.maximum(jnp.sum(lengths), 1), jnp.asarray(objective.kl_coef, jnp.float32)
        totals = Totals(count.astype(jnp.float32), jnp.sum(run).astype(jnp.float32), entropy_coef, kl_coef)
        live = None
        if not objective.needs_all_rows():
            live = jnp.any(rows["advantages"] != 0.0, axis=1)
            live = jnp.where(jnp.any(live), live, jnp.arange(len(live)) == 0)
        fields = {name: rows[name] for name in _PER_TOKEN if name in rows}
        fields["weights"] = jnp.broadcast_to(weights[:, None], rows["completions"].shape).astype(jnp.float32)
        if objective.needs_measurement():
            now, entropies = score(policy, state.params, rows, samples=samples, temperature=temperature, entropies=True)
            sampled = jnp.arange(budget)[None, :] < lengths[:, None]
            fields |= choose_tokens(objective, now, entropies, rows["old_logprobs"], rows["advantages"], sampled)
        batch = _place(rows, samples, fields, live)
        update = make_update_step(policy, transformation, objective, temperature=temperature, chunk=batch.mask.size)
        return update(state, [batch], totals)

    def learn(state: TrainState, rows: Rows, entropy_coef: jax.Array) -> tuple[TrainState, Metrics]:
        if objective.needs_proximal():
            proximal = score(policy, state.params, rows, samples=samples, temperature=temperature)[0]
            rows = rows | {"proximal_logprobs": proximal}
        split = jax.tree.map(lambda x: x.reshape(minibatches, -1, *x.shape[1:]), rows)
        coefs = jnp.broadcast_to(jnp.asarray(entropy_coef, jnp.float32), (minibatches,))
        state, seen = jax.lax.scan(minibatch, state, (split, coefs))
        return state, {name: _reduce(name)(x.astype(jnp.float32), axis=0) for name, x in seen.items()}

    return fresh, learn


_PER_TOKEN = ("old_logprobs", "reference_logprobs", "advantages", "proximal_logprobs")


def _reduce(name: str) -> Callable[..., jax.Array]:
    """How a metric's values of the minibatches become the rollout's; see `Learner.update`."""
    if name.endswith(("max", "in_a_row")):
        return jnp.max
    if name.endswith("min"):
        return jnp.min
    if name.startswith("rollout/entropy_"):  # there may be no token of that sign
        return jnp.nanmean
    return jnp.sum if name.endswith("skipped") else jnp.mean


def _place(rows: Rows, samples: int, fields: dict[str, Any], live: jax.Array | None = None) -> TrainBatch:
    names = ("prompts", "prompt_lengths", "completions", "lengths")
    return lay_out(*(rows[name] for name in names), samples=samples, per_token=fields, live=live)


def choose_tokens(
    objective: ObjectiveConfig,
    now: jax.Array,
    entropies: jax.Array,
    rollout: jax.Array,
    advantages: jax.Array,
    sampled: jax.Array,
) -> dict[str, jax.Array]:
    """Returns the fields of the tokens that are treated apart, as `rlvr.learner.scoring.choose_tokens` does.

    Args:
        now, entropies: [B, C] log-probs and entropies under the policy before the minibatch's update.
        rollout, advantages: [B, C].
        sampled: [B, C] bool, which tokens there are.
    """
    own, chosen = objective.selection, {}
    if objective.surrogate == "aspo" or own.top_entropy < 1:
        threshold = jnp.nanquantile(jnp.where(sampled, entropies, jnp.nan), entropy_quantile(objective))
        chosen["high_entropy"] = sampled & is_uncertain(entropies, threshold, objective)
    if own.covariance == "kl_cov":
        count = jnp.sum(sampled)
        away = (jnp.where(sampled, x - jnp.sum(jnp.where(sampled, x, 0.0)) / count, 0.0) for x in (advantages, now))
        covariance = jnp.where(sampled, math.prod(away), -jnp.inf).reshape(-1)
        rank = jnp.argsort(jnp.argsort(-covariance, stable=True), stable=True).reshape(now.shape)
        chosen["high_covariance"] = sampled & (rank < jnp.maximum(jnp.floor(own.share * count), 1))
    if own.second_moment:
        moments = jnp.where(sampled, jnp.square(now - rollout), jnp.inf)
        ordered = jnp.sort(moments.reshape(-1))
        means = jnp.cumsum(ordered) / jnp.arange(1, ordered.size + 1)
        kept = jnp.sum(means < own.second_moment)  # means never fall
        limit = jnp.where(kept < jnp.sum(sampled), ordered[jnp.minimum(kept, ordered.size - 1)], jnp.inf)
        chosen["small_moment"] = sampled & ((moments < limit) | (moments == ordered[0]))
    return chosen
