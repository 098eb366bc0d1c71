"""One optimizer step: the loss over sampled tokens, gradients accumulated over micro-batches, one update."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlvr import errors, partition
from rlvr.algo.distill import DistillConfig, divergence
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.learner.batch import Inputs, TrainBatch
from rlvr.learner.critic import Critic, token_values, value_loss
from rlvr.learner.descent import Descent, make_descent
from rlvr.learner.logprobs import Metrics, Other, run_rows, token_logprobs, token_loss
from rlvr.learner.loss import Totals, chunk_loss, finish_metrics, make_fields
from rlvr.learner.optimizer import Survey, count_skips, take_survey
from rlvr.learner.state import TrainState, Weights
from rlvr.policy.packed import Segments
from rlvr.policy.router import BALANCE_LOSSES, RouterStats, balance_step, count_changed, z_loss
from rlvr.policy.transformer import Params, Policy


@dataclasses.dataclass
class UpdateConfig:
    """How an optimizer step is split.

    Attributes:
        row_tokens: length of the rows that sequences are packed into. A longer sequence makes the rows of its step
            twice as long, or four times, and so on: each length is compiled once.
        micro_tokens: tokens of one forward and backward pass, padding included: so many rows as fit, but at least
            one for every shard of the rows.
        minibatches: optimizer steps a rollout is split into (by prompt).
        epochs: how often a rollout is learned from, in the same minibatches.
        logprob_chunk: sampled tokens scored at a time; bounds the logits to logprob_chunk * V.
        moments: where AdamW's moments rest between optimizer steps: in the memory of the "device", or in that of its
            "host", from where those of a layer come for its step and go back. The results are the same. A critic's
            stay on the device.
    """

    row_tokens: int = 512
    micro_tokens: int = 2048
    minibatches: int = 1
    epochs: int = 1
    logprob_chunk: int = 256
    moments: str = "device"

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps on each rollout."""
        return self.minibatches * self.epochs

    def validate(self, field: str) -> None:
        """Raises ConfigError naming the field that cannot work."""
        for name in ("row_tokens", "micro_tokens", "minibatches", "epochs", "logprob_chunk"):
            errors.check_at_least(f"{field}.{name}", getattr(self, name), 1)
        errors.check_choice(f"{field}.moments", self.moments, partition.MEMORIES)


class Teaching(NamedTuple):
    """What an update compares the policy's distributions with, where `DistillConfig.compares` says that it does.

    Attributes:
        config: of the distillation.
        policy: the teacher.
        params: (the policy's own parameters, the frozen ones, the step's `teacher`) -> the teacher's.
    """

    config: DistillConfig
    policy: Policy
    params: Callable[[Params, Params | None, Params | None], Params]

    def run(self, params: Params, inputs: Inputs) -> Other:
        """Runs the teacher over a micro-batch's completions; without gradient."""
        params = jax.lax.stop_gradient(params)
        tokens, segments = partition.constrain(inputs.tokens, "batch", None), Segments(inputs.segments, inputs.prefixes)
        hidden = self.policy.forward(params, tokens, inputs.positions, segments=segments).hidden
        return Other(
            self.policy.logits,
            lambda own, other, fields: divergence(self.config, own, other, fields.get("borrowed")),
            self.policy.head_params(params),
            jax.lax.stop_gradient(hidden),
            inputs.sources,
        )


class UpdateStep(NamedTuple):
    """An optimizer step as a function of (state, micro-batches, totals, frozen, teacher), and its programs.

    Attributes:
        zeros: weights (`TrainState.weights`) -> gradients of zero.
        accumulate: (weights, gradients, micro-batch, totals, frozen, teacher) -> (gradients, metrics); consumes the
            gradients.
        combine: (metrics, metrics) -> metrics of both.
        conclude: (gradients, metrics, skips in a row so far, critic only) -> (the policy's survey, metrics).
        descend: the step of the policy's optimizer.
        balance: (parameters, metrics, survey) -> parameters with their selection biases moved, or None where they do
            not move; consumes the first.
        follow: (critic, gradients) -> critic; consumes the first.
    """

    zeros: Any
    accumulate: Any
    combine: Any
    conclude: Any
    descend: Descent
    balance: Any
    follow: Any

    def __call__(
        self,
        state: TrainState,
        batches: Iterable[TrainBatch],
        totals: Totals,
        frozen: Params | None = None,
        critic_only: bool = False,
        teacher: Params | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Takes the step; see `make_update_step`."""
        gradients, metrics = self.zeros(state.weights), None
        for micro in batches:
            gradients, own = self.accumulate(state.weights, gradients, micro, totals, frozen, teacher)
            metrics = own if metrics is None else self.combine(metrics, own)
        assert metrics is not None, "a step needs a micro-batch"
        return self.apply(state, gradients, metrics, critic_only)

    def apply(
        self, state: TrainState, gradients: Weights, metrics: tuple[Metrics, Metrics], critic_only: bool
    ) -> tuple[TrainState, Metrics]:
        """Applies a step's gradients; consumes the state."""
        critic = state.critic
        skips = state.opt_state.notfinite_count, None if critic is None else critic.opt_state.notfinite_count
        survey, out = self.conclude(gradients, metrics, skips, critic_only)
        if not critic_only:
            params, opt_state = self.descend(state.params, state.opt_state, gradients[0], survey)
            if self.balance is not None:
                params = self.balance(params, metrics, survey)
            state = state._replace(params=params, opt_state=opt_state)
        if critic is not None and self.follow is not None:
            state = state._replace(critic=self.follow(critic, gradients[1]))
        return state, out


def make_update_step(
    policy: Policy,
    optimizer: optax.GradientTransformationExtraArgs,
    objective: ObjectiveConfig,
    *,
    temperature: float | jax.Array,
    chunk: int,
    join: Callable[[Params, Params | None], Params] = lambda params, frozen: params,
    shardings: TrainState | None = None,
    critic_optimizer: optax.GradientTransformationExtraArgs | None = None,
    distill: DistillConfig | None = None,
    teaching: Teaching | None = None,
) -> UpdateStep:
    """Returns `update(state, batches, totals, frozen=None, critic_only=False, teacher=None) -> (state, metrics)`, which
    consumes the state. With `critic_only` the policy and its optimizer stay as they are.

    Each micro-batch is one dispatch, which adds to the gradients in place, and one more for each layer applies them:
    what is compiled depends on the shape of a micro-batch, not on how many there are.

    Args:
        temperature: of the sampling, by which logits are divided.
        chunk: see `rlvr.learner.logprobs.token_logprobs`.
        join: see `rlvr.learner.trainable.Trainable`; by default the policy runs with the trained parameters alone.
        shardings: of the state; by default as XLA likes it.
        critic_optimizer: of the state's critic, where it has one.
        distill: what is distilled, if anything is.
        teaching: with what the distributions are compared, if they are.
    """

    def pin(x: Any, like: Callable[[TrainState], Any]) -> Any:
        """Pins parts of the state to their place on the mesh."""
        return x if shardings is None else jax.lax.with_sharding_constraint(x, like(shardings))

    def accumulate(
        weights: Weights,
        gradients: Weights,
        micro: TrainBatch,
        totals: Totals,
        frozen: Params | None,
        teacher: Params | None = None,
    ) -> tuple[Weights, Any]:
        def loss(weights: Weights) -> tuple[jax.Array, Any]:
            own, critic, other = join(weights[0], frozen), weights[1], None
            if teaching is not None:
                assert micro.other is not None
                other = teaching.run(teaching.params(own, frozen, teacher), micro.other)
            return micro_loss(policy, own, micro, totals, objective, temperature, chunk, critic, distill, other)

        more, metrics = jax.grad(loss, has_aux=True)(weights)
        return pin(jax.tree.map(jnp.add, gradients, more), lambda s: s.weights), metrics

    def combine(a: tuple[Metrics, Metrics], b: tuple[Metrics, Metrics]) -> tuple[Metrics, Metrics]:
        return jax.tree.map(jnp.add, a[0], b[0]), jax.tree.map(jnp.maximum, a[1], b[1])

    def conclude(
        gradients: Weights, metrics: tuple[Metrics, Metrics], skips: tuple[Any, Any], critic_only: bool
    ) -> tuple[Survey, Metrics]:
        out = finish_metrics(*metrics)
        surveys = [None if own is None else take_survey(own) for own in gradients]
        for name, survey in zip(("grad_norm", "critic_grad_norm"), surveys, strict=True):
            if survey is not None:
                out[f"optimizer/{name}"] = survey.norm
        pairs = list(zip(skips, surveys, strict=True))[critic_only:]
        moved = [(count_skips(count, survey), ~survey.finite) for count, survey in pairs if survey is not None]
        out["optimizer/skipped"] = functools.reduce(jnp.logical_or, [skipped for _, skipped in moved])
        out["optimizer/skipped_in_a_row"] = functools.reduce(jnp.maximum, [count for count, _ in moved])
        assert surveys[0] is not None
        return surveys[0], out

    @functools.partial(jax.jit, donate_argnums=0)
    def balance(params: Params, metrics: tuple[Metrics, Metrics], survey: Survey) -> Params:
        rate = objective.bias_rate * survey.finite
        return pin(balance_step(params, policy.config, metrics[0]["router/load"], rate), lambda s: s.params)

    @functools.partial(jax.jit, donate_argnums=0)
    def follow(critic: Critic, gradients: Params) -> Critic:
        assert critic_optimizer is not None
        updates, opt_state = critic_optimizer.update(gradients, critic.opt_state, critic.params)
        return pin(Critic(optax.apply_updates(critic.params, updates), opt_state), lambda s: s.critic)

    return UpdateStep(
        zeros=jax.jit(lambda weights: pin(jax.tree.map(jnp.zeros_like, weights), lambda s: s.weights)),
        accumulate=jax.jit(accumulate, donate_argnums=1),
        combine=jax.jit(combine),
        conclude=jax.jit(conclude, static_argnums=3),
        descend=make_descent(optimizer, None if shardings is None else shardings[:2]),
        balance=balance if objective.bias_rate else None,
        follow=None if critic_optimizer is None else follow,
    )


def micro_loss(
    policy: Policy,
    params: Params,
    micro: TrainBatch,
    totals: Totals,
    objective: ObjectiveConfig,
    temperature: float | jax.Array,
    chunk: int,
    critic: Params | None = None,
    distill: DistillConfig | None = None,
    other: Other | None = None,
) -> tuple[jax.Array, tuple[Metrics, Metrics]]:
    """The loss of one micro-batch; the step's loss is the sum over its micro-batches.

    Args:
        critic: its parameters, where the objective has one.
        Others: see `make_update_step`.

    Returns:
        (loss, (sums, maxima)): what the metrics are made of.
    """
    output = run_rows(policy, params, micro, micro.replay(objective.routing))
    scored = (micro.sources, micro.targets, micro.columns(), jnp.float32(temperature), chunk)
    scores = None
    if objective.needs_scores():
        still, hidden = jax.lax.stop_gradient((params, output.hidden))
        scores = token_logprobs(policy, still, hidden, *scored, micro.support)
    fields = make_fields(objective, micro, totals, scores)
    of_chunk = functools.partial(chunk_loss, objective, distill=distill)
    loss, (sums, maxima) = token_loss(policy, params, output.hidden, *scored, of_chunk, fields, micro.support, other)
    if critic is not None:
        values = token_values(critic, output.hidden, micro.sources)
        more_loss, more = value_loss(objective, values, micro, totals.sampled)
        loss, sums = loss + more_loss, sums | more
    if output.router is not None:
        router, more, largest = _router_loss(policy, micro, output.router, output.choices, totals, objective)
        loss, sums, maxima = loss + router, sums | more, maxima | largest
    return loss, (sums, maxima)


def _router_loss(
    policy: Policy,
    micro: TrainBatch,
    stats: RouterStats,
    choices: jax.Array | None,
    totals: Totals,
    objective: ObjectiveConfig,
) -> tuple[jax.Array, Metrics, Metrics]:
    """Returns the mixture layers' part of (the loss, the sums, the maxima)."""
    k = policy.config.experts_per_token
    share = stats.tokens[0] / totals.run
    balance = BALANCE_LOSSES[objective.balance](stats, k)
    z = z_loss(stats)
    fair = stats.tokens[:, None] * k / policy.config.experts
    sums = {
        "router/share": share,
        "moe/balance_loss": share * balance,
        "moe/z_loss": share * z,
        "moe/router_entropy": share * jnp.mean(stats.entropy / jnp.maximum(stats.tokens, 1.0)),
        "router/load": stats.load,
    }
    if micro.choices is not None and choices is not None:
        changed = count_changed(choices, micro.choices, micro.counts)
        sums["moe/choices_changed"] = changed / (totals.run * stats.tokens.shape[0])
    maxima = {"moe/load_max": jnp.max(stats.load / jnp.maximum(fair, 1.0))}
    return share * (objective.balance_coef * balance + objective.z_coef * z), sums, maxima
