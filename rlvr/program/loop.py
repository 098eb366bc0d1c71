"""The loop under jit: one step of the RL of one lane, many steps in a scan, many lanes side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvr.algo.advantages import SPREAD_TOLERANCE
from rlvr.algo.kl import k3
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.selection import EntropyBonus, adapt_entropy_bonus
from rlvr.config import ExperimentConfig
from rlvr.learner.optimizer import make_schedule
from rlvr.learner.state import TrainState
from rlvr.policy.transformer import Params, Policy
from rlvr.program.credit import assign_credit
from rlvr.program.lanes import insert
from rlvr.program.learning import Rows, make_learner, score
from rlvr.program.rollout import Samples, sample_tasks
from rlvr.program.tasks import Demonstrations, TaskArrays
from rlvr.program.verifier import Verdicts, verify_exact

Metrics = dict[str, jax.Array]


class Lane(NamedTuple):
    """One run; with a leading axis, many.

    Attributes:
        state: of the learner.
        start: parameters at the start of the RL.
        bonus: the entropy bonus of the next step.
        pending: [staleness, B, ...] rollouts sampled and not yet learned from.
        scalars: of `rlvr.program.lanes`.
        keys: {"rollout", "evaluation"}: data of the keys of (seed, role).
    """

    state: TrainState
    start: Params
    bonus: EntropyBonus
    pending: Samples
    scalars: Mapping[str, jax.Array]
    keys: Mapping[str, jax.Array]


class Loop:
    """The functions of a structure's runs, to be jitted by who calls them.

    Args:
        structure: see `rlvr.program.lanes.split`.
        stop_ids: of the tokenizer.
    """

    def __init__(self, structure: ExperimentConfig, stop_ids: tuple[int, ...]):
        self.config, self.policy, self._stop_ids = structure, Policy(structure.policy), stop_ids

    def begin(self, params: Params, scalars: Any, keys: Any, first: TaskArrays) -> Lane:
        """Returns the lane at the start of its RL.

        Args:
            first: tasks [staleness, P, ...] of the first rollouts, which are sampled before any update.
        """
        config = insert(self.config, scalars)
        fresh, _ = self._learner(config, scalars)
        sample = functools.partial(self._sample, config, keys, params)
        count = self.config.rollout.staleness
        drawn = [sample(step, jax.tree.map(lambda x, at=step: x[at], first)) for step in range(count)]
        size = self.config.rollout.prompts * self.config.rollout.group_size
        empty = Samples(*(jnp.zeros((0, size, *more), dtype) for more, dtype in self._sample_shapes()))
        pending = jax.tree.map(lambda *x: jnp.stack(x), *drawn) if drawn else empty
        bonus = EntropyBonus(jnp.asarray(scalars["objective.entropy_coef"], jnp.float32), jnp.bool_(True))
        return Lane(fresh(params), params, bonus, pending, scalars, keys)

    def steps(self, lane: Lane, first: jax.Array, tasks: TaskArrays) -> tuple[Lane, Metrics]:
        """Runs n steps of the RL, from step `first` on.

        Args:
            tasks: [n + staleness, P, ...] of these steps and of those whose rollouts are sampled meanwhile.

        Returns:
            (the lane, metrics [n]).
        """
        ahead = self.config.rollout.staleness
        count = tasks.lengths.shape[0] - ahead
        numbers = first + jnp.arange(count)
        own, later = (jax.tree.map(lambda x, at=at: x[at : at + count], tasks) for at in (0, ahead))
        return jax.lax.scan(lambda lane, x: self._step(lane, *x), lane, (numbers, own, later))

    def evaluate(self, params: Params, keys: Any, tasks: TaskArrays) -> tuple[Samples, Verdicts]:
        """Samples and judges each task [N, ...] of an evaluation set once."""
        samples = sample_tasks(
            self.policy,
            params,
            tasks,
            jax.random.wrap_key_data(keys["evaluation"]),
            samples=1,
            temperature=jnp.float32(self.config.evaluation.temperature),
            budget=self.config.engine.max_new_tokens,
            stop_ids=self._stop_ids,
        )
        return samples, verify_exact(samples.tokens, samples.lengths, tasks.answers)

    def warm_state(self, key: jax.Array) -> TrainState:
        """Returns the state at the start of the warm start; `key` is data of the key of (seed, "init")."""
        return self._warm_learner()[0](self.policy.init(jax.random.wrap_key_data(key)))

    def warm_steps(self, state: TrainState, tasks: TaskArrays, shown: Demonstrations) -> tuple[TrainState, Metrics]:
        """Runs n steps of the warm start on tasks [n, P, ...] and what they show; returns (state, metrics [n])."""
        _, learn = self._warm_learner()

        def step(state: TrainState, given: tuple[TaskArrays, Demonstrations]) -> tuple[TrainState, Metrics]:
            tasks, shown = given
            zeros = jnp.zeros(shown.completions.shape, jnp.float32)
            rows = _rows(tasks, shown.completions, shown.lengths, old_logprobs=zeros, advantages=zeros + 1.0)
            return learn(state, rows, jnp.float32(0.0))

        return jax.lax.scan(step, state, (tasks, shown))

    def learning_rate(self, scalars: Mapping[str, float], step: int) -> float:
        """Returns the learning rate of a step of the RL."""
        config, count = insert(self.config, scalars), self.config.update.minibatches
        return float(make_schedule(config.optimizer, self.config.steps * count)(step * count))

    def _warm_learner(self) -> Any:
        c = self.config
        return make_learner(
            self.policy,
            ObjectiveConfig(surrogate="reinforce", aggregation="token_mean"),
            c.warm_start.optimizer,
            steps=c.warm_start.steps,
            minibatches=1,
            samples=1,
            temperature=jnp.float32(1.0),
        )

    def _learner(self, config: ExperimentConfig, scalars: Any) -> Any:
        return make_learner(
            self.policy,
            config.objective,
            config.optimizer,
            steps=config.steps * config.update.minibatches,
            minibatches=config.update.minibatches,
            samples=config.rollout.group_size,
            temperature=jnp.asarray(config.rollout.temperature, jnp.float32),
        )

    def _sample_shapes(self) -> list[tuple[tuple[int, ...], Any]]:
        budget = self.config.engine.max_new_tokens
        return [((budget,), jnp.int32), ((budget,), jnp.float32), ((), jnp.int32), ((), bool)]

    def _sample(self, config: ExperimentConfig, keys: Any, params: Params, step: Any, tasks: TaskArrays) -> Samples:
        key = jax.random.fold_in(jax.random.wrap_key_data(keys["rollout"]), jnp.asarray(step, jnp.uint32))
        return sample_tasks(
            self.policy,
            params,
            tasks,
            key,
            samples=config.rollout.group_size,
            temperature=jnp.asarray(config.rollout.temperature, jnp.float32),
            budget=config.engine.max_new_tokens,
            stop_ids=self._stop_ids,
        )

    def _step(self, lane: Lane, step: jax.Array, tasks: TaskArrays, later: TaskArrays) -> tuple[Lane, Metrics]:
        """One step of the loop: sample, judge, compare within groups, update."""
        config, scalars = insert(self.config, lane.scalars), lane.scalars
        group, ahead = config.rollout.group_size, self.config.rollout.staleness
        sampled = self._sample(config, lane.keys, lane.state.params, step + ahead, later)
        queue = jax.tree.map(lambda old, new: jnp.concatenate([old, new[None]]), lane.pending, sampled)
        samples, pending = (jax.tree.map(lambda x, at=at: x[at], queue) for at in (0, slice(1, None)))
        answers = jnp.repeat(tasks.answers, group, axis=0)
        verdicts = verify_exact(samples.tokens, samples.lengths, answers)
        rows = _rows(tasks, samples.tokens, samples.lengths, old_logprobs=samples.logprobs)

        def measure() -> jax.Array:
            temperature = jnp.asarray(config.rollout.temperature, jnp.float32)
            return score(self.policy, lane.start, rows, samples=group, temperature=temperature)[0]

        told = step % config.evaluation.interval == 0
        needed = config.objective.needs_reference()
        # Only where it is told: the number of the step is the same in all lanes, so that this is a real branch.
        reference = measure() if needed else jax.lax.cond(told, measure, lambda: jnp.zeros(samples.logprobs.shape))
        credit = assign_credit(config, scalars, samples, verdicts, reference if needed else None)
        rows |= {"advantages": credit.advantages}
        if needed:
            rows |= {"reference_logprobs": reference}
        coef = lane.bonus.coef * lane.bonus.active
        _, learn = self._learner(config, scalars)
        state, metrics = learn(lane.state, rows, coef)
        bonus = lane.bonus
        if self.config.objective.entropy_target:
            metrics["optimizer/entropy_coef"] = coef
            exact = insert(self.config, scalars, ENTROPY_FIELDS).objective
            bonus = adapt_entropy_bonus(bonus, metrics["rollout/entropy"], exact)
        metrics |= _rollout_metrics(samples, verdicts, credit.rewards, group)
        metrics["rollout/staleness"] = jnp.minimum(step, ahead)
        metrics["kl/start"] = jnp.where(needed | told, _mean_kl(samples, reference), jnp.nan)
        return Lane(state, lane.start, bonus, pending, scalars, lane.keys), metrics


ENTROPY_FIELDS = tuple(f"objective.entropy_{name}" for name in ("target", "step", "max"))


def side_by_side(function: Callable[..., Any], lanes: int, shared: int) -> Callable[..., Any]:
    """Returns the function of many lanes: its first `lanes` arguments have an axis of lanes, the `shared` next not."""
    return jax.vmap(function, in_axes=(0,) * lanes + (None,) * shared)


def _rows(tasks: TaskArrays, completions: jax.Array, lengths: jax.Array, **fields: jax.Array) -> Rows:
    given = {"prompts": tasks.prompts, "prompt_lengths": tasks.lengths}
    return given | {"completions": completions, "lengths": lengths} | fields


def _mean_kl(samples: Samples, reference: jax.Array) -> jax.Array:
    """See `rlvr.metrics.mean_kl`."""
    sampled = _is_sampled(samples)
    return _mean_sampled(k3(jnp.where(sampled, samples.logprobs - reference, 0.0)), samples)


def _is_sampled(samples: Samples) -> jax.Array:
    return jnp.arange(samples.tokens.shape[1])[None, :] < samples.lengths[:, None]


def _mean_sampled(values: jax.Array, samples: Samples) -> jax.Array:
    """Returns the mean over the tokens that were sampled."""
    return jnp.sum(jnp.where(_is_sampled(samples), values, 0.0)) / jnp.sum(samples.lengths)


def _rollout_metrics(samples: Samples, verdicts: Verdicts, rewards: jax.Array, group: int) -> Metrics:
    """Returns what `rlvr.metrics.rollout_metrics` does, of that which there is here; NaN for what has no value."""
    lengths, right = samples.lengths.astype(jnp.float32), verdicts.correct
    groups = rewards.reshape(-1, group)
    lowest, highest = jnp.min(groups, axis=1), jnp.max(groups, axis=1)
    flat = highest - lowest <= SPREAD_TOLERANCE

    def mean_where(mask: jax.Array) -> jax.Array:
        count = jnp.sum(mask)
        return jnp.where(count > 0, jnp.sum(jnp.where(mask, lengths, 0.0)) / count, jnp.nan)

    return {
        "reward/mean": jnp.mean(rewards),
        "reward/std": jnp.std(rewards),
        "accuracy/strict": jnp.mean(right.astype(jnp.float32)),
        "rollout/tokens": jnp.sum(lengths),
        "rollout/tokens_mean": jnp.mean(lengths),
        "rollout/surprisal": -_mean_sampled(samples.logprobs, samples),
        "rollout/tokens_mean_right": mean_where(right),
        "rollout/tokens_mean_wrong": mean_where(~right),
        "rollout/truncated": jnp.mean((~samples.stopped).astype(jnp.float32)),
        "groups/all_correct": jnp.mean((flat & (lowest >= 1.0)).astype(jnp.float32)),
        "groups/all_wrong": jnp.mean((flat & (lowest < 1.0)).astype(jnp.float32)),
        "verdict/correct": jnp.sum(right),
        "verdict/wrong": jnp.sum(~right & ~verdicts.unparsed),
        "verdict/unparsed": jnp.sum(verdicts.unparsed),
    }
