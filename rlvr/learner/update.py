"""The one jitted update: loss over sampled tokens, gradients accumulated over micro-batches, one optimizer step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlvr import errors
from rlvr.algo.kl import LOSS_ESTIMATORS, k3
from rlvr.algo.objectives import SURROGATES, ObjectiveConfig
from rlvr.learner.batch import TrainBatch
from rlvr.learner.logprobs import row_logprobs
from rlvr.learner.state import TrainState
from rlvr.masked import masked, masked_max, masked_sum
from rlvr.policy.router import BALANCE_LOSSES, balance_step, count_changed, z_loss
from rlvr.policy.transformer import Params, Policy

Metrics = dict[str, jax.Array]


@dataclasses.dataclass
class UpdateConfig:
    """How an optimizer step is split.

    Attributes:
        micro_rows: rows of one forward and backward pass.
        minibatches: optimizer steps a rollout is split into (by prompt).
        logprob_chunk: sampled tokens of each row scored at a time; bounds the logits to micro_rows * chunk * V.
        length_buckets: padded row lengths, one compiled update each; the longest possible row is added.
    """

    micro_rows: int = 16
    minibatches: int = 1
    logprob_chunk: int = 64
    length_buckets: tuple[int, ...] = ()

    def validate(self, field: str) -> None:
        """Raises ConfigError naming the field that cannot work."""
        for name in ("micro_rows", "minibatches", "logprob_chunk"):
            errors.check_at_least(f"{field}.{name}", getattr(self, name), 1)
        for length in self.length_buckets:
            errors.check_at_least(f"{field}.length_buckets", length, 2)


def make_update_step(
    policy: Policy,
    optimizer: optax.GradientTransformation,
    objective: ObjectiveConfig,
    *,
    temperature: float,
    chunk: int,
    join: Callable[[Params, Params | None], Params] = lambda params, frozen: params,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns `update(state, batch, micros, frozen=None) -> (state, metrics)`, jitted, donating the state.

    Only the first `micros` (scalar int32, >= 1) micro-batches are processed: rows without gradient go last and are
    left out. The denominators in `batch.weights` are those of the whole step either way.

    Args:
        temperature: of the sampling, by which logits are divided.
        chunk: see `rlvr.learner.logprobs.token_logprobs`.
        join: see `rlvr.learner.trainable.Trainable`; by default the policy runs with the trained parameters alone.
    """
    surrogate = SURROGATES[objective.surrogate]

    def micro_loss(params: Params, micro: TrainBatch, totals: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
        """Loss of one micro-batch [R, ...]; the step's loss is the sum over micro-batches."""
        replay = {"live": None, "rollout": micro.choices, "old": micro.old_choices}[objective.routing]
        logprobs, entropies, output = row_logprobs(
            policy, params, micro.tokens, micro.lengths, micro.positions, jnp.float32(temperature), chunk, replay
        )
        logprobs = masked(logprobs, micro.mask)
        losses, indicators = surrogate(logprobs, micro.old_logprobs, micro.advantages, objective)
        policy_loss = masked_sum(losses * micro.weights, micro.mask)
        loss = policy_loss
        if objective.kl in LOSS_ESTIMATORS:
            penalty = LOSS_ESTIMATORS[objective.kl](logprobs - micro.reference_logprobs)
            loss += objective.kl_coef * masked_sum(penalty * micro.weights, micro.mask)
        sampled, rows = totals
        loss -= objective.entropy_coef * masked_sum(entropies, micro.mask) / sampled
        gap = jnp.abs(jax.lax.stop_gradient(logprobs) - micro.old_logprobs)
        sums = {
            "loss/policy": policy_loss,
            "tokens": jnp.sum(micro.mask, dtype=jnp.float32),
            "rollout/entropy": masked_sum(entropies, micro.mask),
            "gap/mean": masked_sum(gap, micro.mask),
            "kl/update": masked_sum(k3(logprobs - micro.old_logprobs), micro.mask),
            **{name: masked_sum(x.astype(jnp.float32), micro.mask) for name, x in indicators.items()},
        }
        maxima = {"gap/max": masked_max(gap, micro.mask)}
        if output.router is not None:
            stats = output.router
            share = stats.tokens[0] / rows
            balance = BALANCE_LOSSES[objective.balance](stats, policy.config.experts_per_token)
            z = z_loss(stats)
            loss += share * (objective.balance_coef * balance + objective.z_coef * z)
            fair = stats.tokens[:, None] * policy.config.experts_per_token / policy.config.experts
            sums |= {
                "router/share": share,
                "moe/balance_loss": share * balance,
                "moe/z_loss": share * z,
                "moe/router_entropy": share * jnp.mean(stats.entropy / jnp.maximum(stats.tokens, 1.0)),
                "router/load": stats.load,
            }
            maxima["moe/load_max"] = jnp.max(stats.load / jnp.maximum(fair, 1.0))
            if micro.choices is not None and output.choices is not None:
                valid = jnp.arange(micro.tokens.shape[1])[None, :] < micro.lengths[:, None]
                changed = count_changed(output.choices, micro.choices, valid)
                layers = stats.tokens.shape[0]
                sums["moe/choices_changed"] = changed / (rows * layers)
        return loss, (sums, maxima)

    def update(
        state: TrainState, batch: TrainBatch, micros: jax.Array, frozen: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        totals = (
            jnp.maximum(jnp.sum(batch.mask, dtype=jnp.float32), 1.0),
            jnp.maximum(jnp.sum(batch.lengths, dtype=jnp.float32), 1.0),
        )

        def micro_gradient(i: jax.Array) -> tuple[Any, Any]:
            micro = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), batch)
            return jax.grad(lambda params: micro_loss(join(params, frozen), micro, totals), has_aux=True)(state.params)

        def accumulate(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            gradients, (sums, maxima) = micro_gradient(i)
            total, (all_sums, all_maxima) = carry
            add, largest = (
                jax.tree.map(jnp.add, all_sums, sums),
                jax.tree.map(jnp.maximum, all_maxima, maxima),
            )
            return jax.tree.map(jnp.add, total, gradients), (add, largest)

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(micro_gradient, jnp.int32(0)))
        gradients, (sums, maxima) = jax.lax.fori_loop(0, micros, accumulate, zeros)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if objective.bias_rate:
            rate = objective.bias_rate * opt_state.last_finite
            params = balance_step(params, policy.config, sums["router/load"], rate)
        metrics = _finish(sums, maxima)
        metrics["optimizer/grad_norm"] = optax.tree.norm(gradients)
        metrics["optimizer/skipped"] = ~opt_state.last_finite
        metrics["optimizer/skipped_in_a_row"] = opt_state.notfinite_count
        return TrainState(params, opt_state), metrics

    return jax.jit(update, donate_argnums=0)


def _finish(sums: Metrics, maxima: Metrics) -> Metrics:
    """Turns sums over the processed micro-batches into means; the policy loss is a sum already."""
    tokens = jnp.maximum(sums["tokens"], 1.0)
    share = sums.get("router/share", jnp.float32(1.0))
    out = dict(maxima)
    for name, value in sums.items():
        if name.startswith("moe/"):
            out[name] = value / share
        elif name == "loss/policy":
            out[name] = value
        elif name not in ("tokens", "router/share", "router/load"):
            out[name] = value / tokens
    return out
