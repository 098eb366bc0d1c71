"""A stage of learning: an optimizer with its update, fed with rows. The warm start and the RL are two of these."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlvr import errors, partition
from rlvr.algo.aggregation import AGGREGATIONS, weigh_right
from rlvr.algo.distill import DistillConfig
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.learner.batch import Place, Row, TrainBatch
from rlvr.learner.critic import CriticConfig, abstract_critic, critic_shardings, fresh_critic, make_appraiser
from rlvr.learner.logprobs import Metrics, run_rows
from rlvr.learner.loss import Totals
from rlvr.learner.optimizer import OptimizerConfig, make_optimizer, make_schedule
from rlvr.learner.scoring import Layout, choose_tokens, make_meter, make_scorer
from rlvr.learner.state import TrainState, abstract_state, fresh_state, state_sharding_tree
from rlvr.learner.trainable import Trainable, all_parameters
from rlvr.learner.update import Teaching, UpdateConfig, make_update_step
from rlvr.policy.transformer import Params, Policy

ReadMetrics = Callable[[], dict[str, float]]


class Learner:
    """Turns rows into updates. Call within `jax.set_mesh(mesh)`.

    Args:
        policy: the policy.
        objective: what is minimised.
        optimizer: its config; `steps` optimizer steps in all.
        update: how a step is split.
        max_length: longest row; max_columns: longest completion; also the generation budget of `seq_sum_norm`.
        temperature: of the sampling.
        trainable: what is trained; by default all parameters of the policy.
        critic: how the critic of an objective that needs values learns.
        distill, teaching: see `rlvr.learner.update.make_update_step`.
    """

    def __init__(
        self,
        policy: Policy,
        objective: ObjectiveConfig,
        optimizer: OptimizerConfig,
        update: UpdateConfig,
        *,
        steps: int,
        max_length: int,
        max_columns: int,
        temperature: float,
        mesh: Mesh,
        trainable: Trainable | None = None,
        critic: CriticConfig | None = None,
        distill: DistillConfig | None = None,
        teaching: Teaching | None = None,
    ):
        trainable = trainable or all_parameters(policy)
        self._policy, self._trainable = policy, trainable
        self._objective = objective
        # Means over tokens of one sign, or of those that the rows' own prompts drew, of which there may be none.
        borrows = distill is not None and distill.method == "pi"
        self._perhaps_of_none = ("rollout/entropy_", *(("gap/", "kl/update") if borrows else ()))
        self._all_rows = objective.needs_all_rows() or (distill is not None and distill.needs_all_rows())
        self._config = update
        self._mesh = mesh
        self._max_skips = optimizer.max_skips
        self._max_length, self._max_columns = max_length, max_columns
        # Optimizer steps before the first of the policy's own.
        self._critic_steps = critic.pretrain_steps * update.optimizer_steps if critic else 0
        self._optimizer = make_optimizer(optimizer, steps - self._critic_steps)
        self._schedule = make_schedule(optimizer, steps - self._critic_steps)
        self._critic_optimizer = None
        shardings = state_sharding_tree(trainable, self._optimizer, mesh, update.moments)
        if objective.needs_values():
            self._critic_optimizer = make_optimizer((critic or CriticConfig()).optimizer, steps)
            shardings = shardings._replace(critic=critic_shardings(policy, self._critic_optimizer, mesh))
        self._update = make_update_step(
            policy,
            self._optimizer,
            objective,
            temperature=temperature,
            chunk=update.logprob_chunk,
            join=trainable.join,
            shardings=shardings,
            critic_optimizer=self._critic_optimizer,
            distill=distill,
            teaching=teaching,
        )
        self._layout = Layout(update.row_tokens, update.micro_tokens, mesh)
        self._score = make_scorer(
            policy, self._layout, temperature=temperature, chunk=update.logprob_chunk, join=trainable.join
        )
        self._appraise = make_appraiser(policy, self._layout, objective, trainable.join)
        self._measure = make_meter(
            policy,
            self._layout,
            temperature=temperature,
            chunk=update.logprob_chunk,
            routing=objective.routing,
            join=trainable.join,
        )

        def route(params: Params, frozen: Params | None, batch: TrainBatch) -> jax.Array:
            choices = run_rows(policy, trainable.join(params, frozen), batch).choices
            assert choices is not None
            return choices.astype(jnp.int16)

        self._route = jax.jit(route, out_shardings=partition.replicated(mesh))

    def fresh(self, params: Params) -> TrainState:
        """Returns the state at the start of this stage."""
        state = fresh_state(self._trainable, self._optimizer, params, self._mesh, self._config.moments)
        if self._critic_optimizer is None:
            return state
        return state._replace(critic=fresh_critic(self._policy, self._critic_optimizer, self._mesh))

    def abstract(self) -> TrainState:
        """Returns the shapes and shardings of this stage's state."""
        state = abstract_state(self._trainable, self._optimizer, self._mesh, self._config.moments)
        if self._critic_optimizer is None:
            return state
        return state._replace(critic=abstract_critic(self._policy, self._critic_optimizer, self._mesh))

    def lower(self, length: int, state: TrainState, like: Row) -> dict[str, list[tuple[Any, int]]]:
        """Lowers the programs of an optimizer step without running any, for devices that need not be here.

        Args:
            length: T of the rows.
            state: shapes and shardings (`abstract`, called where no mesh is set: it runs small programs).
            like: a row with the optional fields that those of the run have.

        Returns:
            {"accumulate", "apply"}: lowered programs of a micro-batch and of the optimizer's step, each with how often
            it runs.
        """
        if self._objective.needs_values():
            like = like._replace(values=like.old_logprobs, returns=like.old_logprobs, value_weight=1.0)
        if self._objective.imitation_coef:
            like = like._replace(imitation=1.0)
        batch = self._layout.abstract(like, length)
        scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=partition.replicated(self._mesh))
        totals = Totals(*(scalar for _ in Totals._fields))
        accumulate = self._update.accumulate.lower(state.weights, state.weights, batch, totals, self._trainable.frozen)

        def place(shapes: Any) -> Any:
            return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=scalar.sharding), shapes)

        skips = (
            state.opt_state.notfinite_count,
            None if state.critic is None else state.critic.opt_state.notfinite_count,
        )
        conclude = self._update.conclude.lower(state.weights, place(accumulate.out_info[1]), skips, False)
        survey = place(conclude.out_info[0])
        parts = self._update.descend.lower(state.params, state.opt_state, state.params, survey)
        return {"accumulate": [(accumulate, 1)], "apply": [(conclude, 1), *parts]}

    def learning_rate(self, step: int) -> float:
        """Returns the policy's learning rate in an optimizer step of this stage; 0 where only the critic learns.

        A skipped update does not count as a step.
        """
        return float(self._schedule(step - self._critic_steps)) if step >= self._critic_steps else 0.0

    def score(self, params: Params, rows: Sequence[Row]) -> list[np.ndarray]:
        """Returns the log-probs of each row's completion under `params`."""
        return self._score(params, self._checked(rows), self._trainable.frozen)

    def values(self, state: TrainState, rows: Sequence[Row]) -> list[np.ndarray] | None:
        """Returns the critic's values before each token of each row, [C]; None where there is no critic.

        If the objective bootstraps, those of a row that was cut off are [C + 1], the last after its last token.
        """
        if state.critic is None:
            return None
        return self._appraise(*state.weights, self._checked(rows), self._trainable.frozen)

    def update(
        self,
        state: TrainState,
        rows: Sequence[Row],
        reference: Sequence[np.ndarray] | None = None,
        entropy_coef: float | None = None,
        kl_coef: float | None = None,
        critic_only: bool = False,
        teacher: Params | None = None,
    ) -> tuple[TrainState, ReadMetrics]:
        """Starts the optimizer steps of a rollout, one for each of its minibatches in each epoch; the state given is
        consumed.

        Sequences whose advantage is exactly zero are left out of the work where they have no gradient; the
        denominators stay those of all rows of the minibatch.

        Args:
            rows: prompt by prompt; minibatches are made of whole groups, and are fewer where there are fewer groups.
            reference: log-probs of each row's completion under the reference, if they are known.
            entropy_coef, kl_coef: of the entropy bonus and of the KL in the loss; by default the objective's.
            critic_only: whether the policy is to stay as it is.
            teacher: parameters of `Teaching`, where it takes any.

        Returns:
            (the new state, a function that waits for the device and returns the metrics: means over the steps, but
            extremes for names ending in "max" and "min" and the sum of the skipped updates. It raises
            FloatingPointError if too many updates in a row were skipped for non-finite gradients).
        """
        if self._objective.routing == "old":
            rows = self._record_choices(state.params, rows)
        if self._objective.needs_proximal():
            before = self._measure(state.params, self._checked(rows), self._trainable.frozen)
            rows = [row._replace(proximal_logprobs=m.logprobs) for row, m in zip(rows, before, strict=True)]
        coefs = {
            "entropy_coef": np.float32(self._objective.entropy_coef if entropy_coef is None else entropy_coef),
            "kl_coef": np.float32(self._objective.kl_coef if kl_coef is None else kl_coef),
        }
        seen: list[Metrics] = []
        for chosen in [*split_groups(rows, self._config.minibatches)] * self._config.epochs:
            own = None if reference is None else reference[chosen]
            state, metrics = self._step(state, rows[chosen], own, coefs, critic_only, teacher)
            seen.append(metrics)
        return state, lambda: self._read(seen)

    def _read(self, seen: Sequence[Metrics]) -> dict[str, float]:
        read = [{name: float(partition.host_value(x)) for name, x in metrics.items()} for metrics in seen]
        if max([metrics.pop("optimizer/skipped_in_a_row") for metrics in read]) >= self._max_skips:
            raise FloatingPointError(
                f"{self._max_skips} updates in a row had non-finite gradients and were skipped; the last good "
                "checkpoint is untouched. Lower optimizer.learning_rate, or look at the last samples"
            )
        reduce: dict[str, Callable[..., Any]] = {"max": np.max, "min": np.min, "skipped": np.sum}
        out = {}
        for name in read[0]:
            values = [metrics[name] for metrics in read]
            if name.startswith(self._perhaps_of_none):
                values = [value for value in values if not math.isnan(value)]
            if values:
                out[name] = float(next((f for end, f in reduce.items() if name.endswith(end)), np.mean)(values))
        return out

    def _record_choices(self, params: Params, rows: Sequence[Row]) -> list[Row]:
        """Returns the rows with the experts that `params` choose now; -1 for a last token, which is not run."""
        batches, places = self._layout.lay_out(self._checked(rows))
        placed = (self._layout.put(batch) for batch in batches)
        chosen = [partition.host_value(self._route(params, self._trainable.frozen, batch)) for batch in placed]

        def of(row: Row, at: Place) -> np.ndarray:
            own, prompt = chosen[at.batch][at.row], len(row.prompt)
            parts = own[at.prompt : at.prompt + prompt], own[at.completion : at.completion + row.run_tokens - prompt]
            rest = len(row.completion) - (row.run_tokens - prompt)
            return np.concatenate([*parts, np.full((rest, *own.shape[1:]), -1, np.int16)])

        return [row._replace(old_choices=of(row, at)) for row, at in zip(rows, places, strict=True)]

    def _step(
        self,
        state: TrainState,
        rows: Sequence[Row],
        reference: Sequence[np.ndarray] | None,
        coefs: Mapping[str, np.float32],
        critic_only: bool,
        teacher: Params | None,
    ) -> tuple[TrainState, Metrics]:
        if self._objective.needs_measurement():
            measured = self._measure(state.params, self._checked(rows), self._trainable.frozen)
            rows = choose_tokens(self._objective, rows, measured)
        sampled = np.array([len(row.completion) for row in rows])
        groups = np.array([row.group for row in rows])
        weights = AGGREGATIONS[self._objective.aggregation](sampled, groups, self._max_columns)
        weights = weights * np.array([row.weight for row in rows])
        if self._objective.imitation_coef:
            shares = weigh_right(sampled, np.array([row.right for row in rows]))
            rows = [row._replace(imitation=float(share)) for row, share in zip(rows, shares, strict=True)]
        run = sum(row.run_tokens for row in rows)
        totals = Totals(np.float32(max(sampled.sum(), 1)), np.float32(max(run, 1)), **coefs)
        live = list(range(len(rows)))
        if not self._all_rows:
            live = [i for i in live if np.any(np.asarray(rows[i].advantage) != 0.0)]
        # Without any gradient one sequence is run all the same: a step has its metrics, and the optimizer its decay.
        live = live or [0]
        known = None if reference is None else [reference[i] for i in live]
        batches, _ = self._layout.lay_out(self._checked([rows[i] for i in live]), weights[live], known)
        placed = (self._layout.put(batch) for batch in batches)
        state, metrics = self._update(state, placed, totals, self._trainable.frozen, critic_only, teacher)
        adapting = {"entropy_coef": self._objective.entropy_target, "kl_coef": self._objective.kl_target}
        metrics |= {f"optimizer/{name}": jnp.asarray(coefs[name]) for name, target in adapting.items() if target}
        return state, metrics

    def _checked(self, rows: Sequence[Row]) -> Sequence[Row]:
        longest = max(row.longest_prompt + len(row.completion) for row in rows)
        if longest > self._max_length:
            raise errors.DataError(f"a row of {longest} tokens is longer than the {self._max_length} allowed")
        return rows


def split_groups(rows: Sequence[Row], parts: int) -> list[slice]:
    """Returns which rows each of `parts` minibatches has: whole groups, as evenly as they go, at least one in each.

    The two sides of a prompt (`Row.borrowed`), groups 2 g and 2 g + 1, stay together: their weights are for both.
    """
    prompts = [row.group if row.borrowed is None else row.group // 2 for row in rows]
    starts = [i for i, prompt in enumerate(prompts) if i == 0 or prompt != prompts[i - 1]]
    parts = min(parts, len(starts))
    cuts = [starts[len(starts) * part // parts] for part in range(parts)] + [len(rows)]
    return [slice(*pair) for pair in itertools.pairwise(cuts)]
