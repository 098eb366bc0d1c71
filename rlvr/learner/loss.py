"""The policy's loss over the sampled tokens of a micro-batch: the parts of an objective put together."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvr.algo.correction import correct, keep_on_policy
from rlvr.algo.kl import LOG_RATIO_LIMIT, LOSS_ESTIMATORS, k3
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.surrogates import SURROGATES, Fields, bound_log_ratio, needs_sequence
from rlvr.learner.batch import TrainBatch
from rlvr.learner.logprobs import Metrics
from rlvr.masked import masked, masked_max, masked_sum, segment_mean, segment_sum


class Totals(NamedTuple):
    """Scalars float32 of a step: the denominators of its means, over all its sequences, also those left out of the
    work, and what changes from step to step.

    Attributes:
        sampled: tokens.
        run: tokens that are run, each as often as there are sequences with it.
        entropy_coef: of the entropy bonus.
    """

    sampled: Any
    run: Any
    entropy_coef: Any = 0.0


def make_fields(objective: ObjectiveConfig, micro: TrainBatch, totals: Totals, scores: jax.Array | None) -> Fields:
    """Returns what the loss needs to know of each token, [R, S] each, without gradients.

    Sequences stand whole in a row, so that what is a sum over a sequence is made here.

    Args:
        scores: [R, S] log-probs under the policy; where `ObjectiveConfig.needs_scores` says so.
    """
    mask, sequences, advantages = micro.mask, micro.sequences, masked(micro.advantages, micro.mask)
    rollout = masked(micro.old_logprobs, mask)
    fields: Fields = {
        "mask": mask,
        "rollout": rollout,
        "reference": micro.reference_logprobs,
        "advantages": advantages,
        "weights": micro.weights,
        "sampled": jnp.broadcast_to(totals.sampled, mask.shape),
        "entropy_coef": jnp.broadcast_to(totals.entropy_coef, mask.shape),
    }
    for name in ("high_entropy", "high_covariance"):
        if (given := getattr(micro, name)) is not None:
            fields[name] = given
    now = None if scores is None else masked(scores, mask)
    # Against the policy itself ("current") there is nothing to keep: the loss has its log-probs.
    old = {"rollout": rollout, "recomputed": micro.proximal_logprobs, "current": now}[objective.old]
    if objective.old != "current":
        fields["old"] = old
    if needs_sequence(objective):
        fields["sequence"] = _sequence_log_ratio(objective, now - masked(old, mask), advantages, mask, sequences)
    correction = objective.correction
    if correction.compares():
        fields["correction"], fields["corrected"] = correct(old - rollout, mask, sequences, correction)
    if correction.opsm:
        fields["kept"] = keep_on_policy(rollout - now, advantages, mask, sequences, correction)
    return fields


def chunk_loss(
    objective: ObjectiveConfig, logprobs: jax.Array, entropies: jax.Array, fields: Fields
) -> tuple[jax.Array, tuple[Metrics, Metrics]]:
    """The policy's loss over some tokens [R, n], and what the metrics are made of; see `token_loss`."""
    mask, rollout, weights = fields["mask"], fields["rollout"], fields["weights"]
    logprobs = masked(logprobs, mask)
    fields = {"old": jax.lax.stop_gradient(logprobs), **fields}
    losses, indicators = SURROGATES[objective.surrogate](logprobs, fields, objective)
    losses, more = _choose(objective, losses, logprobs, fields)
    policy_loss = masked_sum(losses * weights, mask)
    loss = policy_loss
    if objective.kl in LOSS_ESTIMATORS:
        x = logprobs - fields["reference"]
        penalty = LOSS_ESTIMATORS[objective.kl](masked(x, mask), masked(logprobs - fields["old"], mask))
        loss += objective.kl_coef * masked_sum(penalty * weights, mask)
    if objective.entropy_coef or objective.entropy_target:
        loss -= masked_sum(fields["entropy_coef"] * entropies / fields["sampled"], mask)
    gap = jnp.abs(logprobs - rollout)
    sums = {
        "loss/policy": policy_loss,
        "tokens": jnp.sum(mask, dtype=jnp.float32),
        "rollout/entropy": masked_sum(entropies, mask),
        "gap/mean": masked_sum(gap, mask),
        "kl/update": masked_sum(k3(logprobs - rollout), mask),
        **{name: masked_sum(x.astype(jnp.float32), mask) for name, x in (indicators | more).items()},
    }
    return loss, (sums, {"gap/max": masked_max(gap, mask)})


def _choose(
    objective: ObjectiveConfig, losses: jax.Array, logprobs: jax.Array, fields: Fields
) -> tuple[jax.Array, Metrics]:
    """Applies what changes single tokens' losses after the surrogate; returns (losses, indicators)."""
    indicators: Metrics = {}
    selection = objective.selection
    if selection.top_entropy < 1:
        losses = jnp.where(fields["high_entropy"], losses, 0.0)
    if selection.covariance != "none":
        chosen = fields["high_covariance"]
        indicators["selection/covariance"] = chosen
        if selection.covariance == "clip_cov":
            losses = jnp.where(chosen, 0.0, losses)
        else:
            log_r = jnp.clip(logprobs - fields["old"], -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
            moved = log_r * jnp.sign(log_r)  # not abs, whose derivative at 0 is 1 in jax: on policy there is none
            losses += jnp.where(chosen, selection.coef * moved, 0.0)
    if "correction" in fields:
        losses *= fields["correction"]
        indicators |= {"correction/weight": fields["correction"], "correction/changed": fields["corrected"]}
    if "kept" in fields:
        losses = jnp.where(fields["kept"], losses, 0.0)
        indicators["correction/opsm"] = ~fields["kept"]
    return losses, indicators


def _sequence_log_ratio(
    objective: ObjectiveConfig, log_r: jax.Array, advantages: jax.Array, mask: jax.Array, sequences: jax.Array
) -> jax.Array:
    log_r = jnp.clip(log_r, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if objective.surrogate == "gmpo":
        return segment_mean(bound_log_ratio(log_r, advantages, objective), mask, sequences)
    reduce = {"seq_geo": segment_mean, "seq_prod": segment_sum}[objective.ratio]
    return reduce(log_r, mask, sequences)
