"""The policy's loss over the sampled tokens of a micro-batch: the parts of an objective put together."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvr.algo.correction import correct, keep_on_policy
from rlvr.algo.distill import DistillConfig
from rlvr.algo.kl import LOG_RATIO_LIMIT, LOSS_ESTIMATORS, k3, k3_forward, k3_plus
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.surrogates import SURROGATES, Fields, bound_log_ratio, needs_sequence
from rlvr.learner.batch import TrainBatch
from rlvr.learner.logprobs import Metrics
from rlvr.masked import masked, masked_max, masked_sum, segment_mean, segment_sum

# What is summed for the denominators of others, or for the router's biases.
_COUNTS = ("tokens", "tokens/positive", "tokens/negative", "tokens/own", "sequences", "router/share", "router/load")


class Totals(NamedTuple):
    """Scalars float32 of a step: the denominators of its means, over all its sequences, also those left out of the
    work, and what changes from step to step.

    Attributes:
        sampled: tokens.
        run: tokens that are run, each as often as there are sequences with it.
        entropy_coef, kl_coef: of the entropy bonus and of the KL in the loss.
    """

    sampled: Any
    run: Any
    entropy_coef: Any = 0.0
    kl_coef: Any = 0.0


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
        "shares": masked(1.0 / jnp.maximum(segment_sum(jnp.ones_like(rollout), mask, sequences), 1.0), mask),
        "sampled": jnp.broadcast_to(totals.sampled, mask.shape),
        "entropy_coef": jnp.broadcast_to(totals.entropy_coef, mask.shape),
        "kl_coef": jnp.broadcast_to(totals.kl_coef, mask.shape),
    }
    for name in ("high_entropy", "high_covariance", "small_moment", "imitation", "borrowed"):
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
    objective: ObjectiveConfig,
    logprobs: jax.Array,
    entropies: jax.Array,
    fields: Fields,
    distill: DistillConfig | None = None,
) -> tuple[jax.Array, tuple[Metrics, Metrics]]:
    """The policy's loss over some tokens [R, n], and what the metrics are made of; see `token_loss`."""
    mask, weights = fields["mask"], fields["weights"]
    logprobs = masked(logprobs, mask)
    fields = {"old": jax.lax.stop_gradient(logprobs), **fields}
    losses, indicators = SURROGATES[objective.surrogate](logprobs, fields, objective)
    losses, more = _choose(objective, losses, logprobs, fields)
    policy_loss = masked_sum(losses * weights, mask)
    loss = policy_loss
    if objective.kl in LOSS_ESTIMATORS:
        x = logprobs - fields["reference"]
        penalty = LOSS_ESTIMATORS[objective.kl](masked(x, mask), masked(logprobs - fields["old"], mask))
        loss += masked_sum(fields["kl_coef"] * penalty * weights, mask)
    if objective.entropy_coef or objective.entropy_target:
        loss -= masked_sum(fields["entropy_coef"] * entropies / fields["sampled"], mask & (weights != 0))
    if objective.imitation_coef:
        more["loss/imitation"] = -logprobs * fields["imitation"]
        loss += objective.imitation_coef * masked_sum(more["loss/imitation"], mask)
    if distill is not None and (far := _diverge(distill, logprobs, fields)) is not None:
        loss += distill.coef * masked_sum(far * weights, mask)
        more["distill/divergence"] = far
    gaps, maxima = measure_gap(logprobs, fields)
    sums = {
        "loss/policy": policy_loss,
        "tokens": jnp.sum(mask, dtype=jnp.float32),
        "rollout/entropy": masked_sum(entropies, mask),
        **gaps,
        **{name: masked_sum(x.astype(jnp.float32), mask) for name, x in (indicators | more).items()},
    }
    for name, side in (("positive", fields["advantages"] > 0), ("negative", fields["advantages"] < 0)):
        sums[f"tokens/{name}"] = jnp.sum(mask & side, dtype=jnp.float32)
        sums[f"rollout/entropy_{name}"] = masked_sum(entropies, mask & side)
    return loss, (sums, maxima)


def measure_gap(logprobs: jax.Array, fields: Fields) -> tuple[Metrics, Metrics]:
    """Returns (sums, maxima) over some tokens [R, n] of how far the policy is from what was sampled with.

    w = policy / rollout. What `finish_metrics` makes of them: the means of |log w| (gap/mean), -log w (gap/kl) and
    w - 1 - log w (gap/k3), which estimate KL(rollout || policy); the mean of w^2 - 1 (gap/chi2); the effective sample
    size as a share, (mean w)^2 / mean w^2 (gap/ess); w's mean and extremes; and the mean over sequences of the log of
    policy perplexity / rollout perplexity (gap/log_perplexity). kl/update is k3 the other way round. Tokens that were
    sampled behind another prompt than the row's are left out.
    """
    mask = fields["mask"] & ~fields["borrowed"] if "borrowed" in fields else fields["mask"]
    log_w = masked(logprobs - fields["rollout"], mask)
    bounded = jnp.clip(log_w, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    excess = jnp.expm1(bounded)
    sums = {
        "gap/mean": jnp.abs(log_w),
        "gap/kl": -log_w,
        "gap/k3": excess - log_w,
        "gap/chi2": jnp.expm1(2.0 * bounded),
        "gap/weight_mean": excess,
        "gap/log_perplexity": -log_w * fields["shares"],
        "sequences": fields["shares"],
        "tokens/own": jnp.ones_like(log_w),
        "kl/update": k3(log_w),
    }
    maxima = {"gap/max": jnp.abs(log_w), "gap/weight_max": jnp.exp(bounded), "gap/weight_min": jnp.exp(-bounded)}
    return (
        {name: masked_sum(x, mask) for name, x in sums.items()},
        {name: masked_max(x, mask) for name, x in maxima.items()},
    )


def finish_metrics(sums: Metrics, maxima: Metrics) -> Metrics:
    """Turns sums over the processed micro-batches into means; what is weighed already (loss/) is left as it is.

    A mean over tokens or groups of them that there are none of is NaN.
    """
    tokens = jnp.maximum(sums["tokens"], 1.0)
    share = sums.get("router/share", jnp.float32(1.0))
    own = sums["tokens/own"]
    denominators = {
        **{name: own for name in sums if name.startswith("gap/")},
        "kl/update": own,
        "gap/log_perplexity": sums["sequences"],
        **{f"rollout/entropy_{side}": sums[f"tokens/{side}"] for side in ("positive", "negative")},
    }
    out = {name: jnp.where(own > 0, x, jnp.nan) if name.startswith("gap/") else x for name, x in maxima.items()}
    for name, value in sums.items():
        if name.startswith("moe/"):
            out[name] = value / share
        elif name.startswith("loss/"):
            out[name] = value
        elif name not in _COUNTS:
            out[name] = value / denominators.get(name, tokens)
    out["gap/weight_mean"] += 1.0  # it was summed as w - 1, which float32 holds better
    out["gap/ess"] = out["gap/weight_mean"] ** 2 / (1.0 + out["gap/chi2"])
    out["gap/weight_min"] = 1.0 / out["gap/weight_min"]  # the largest 1 / w
    return out


def _diverge(distill: DistillConfig, logprobs: jax.Array, fields: Fields) -> jax.Array | None:
    """Returns the divergence of each token in the loss, [R, n]; None where it is in the advantages, or nowhere.

    Of pi-Distill's sampled form each side has the estimator whose gradient by that side is the KL's, given that the
    teacher samples: k3+ of KL(teacher || sg student), and the forward k3 of KL(sg teacher || student).
    """
    if "divergence" in fields:
        return fields["divergence"]
    if distill.method != "pi" or not distill.coef:
        return None
    x = masked(logprobs - fields["reference"], fields["mask"])
    return jnp.where(fields["borrowed"], k3_forward(x), k3_plus(x))


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
    if selection.second_moment:
        losses = jnp.where(fields["small_moment"], losses, 0.0)
        indicators["selection/moment"] = ~fields["small_moment"]
    if "correction" in fields:
        losses *= fields["correction"]
        indicators |= {"correction/weight": fields["correction"], "correction/changed": fields["corrected"]}
        indicators["correction/masked"] = fields["correction"] == 0
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
