"""A stage of learning: an optimizer with its update, fed with rows. The warm start and the RL are two of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlvr import errors, partition
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.learner.batch import Row, TrainBatch, bucket, make_batch
from rlvr.learner.logprobs import row_logprobs
from rlvr.learner.optimizer import OptimizerConfig, make_optimizer, make_schedule
from rlvr.learner.state import TrainState, abstract_state, fresh_state
from rlvr.learner.trainable import Trainable, all_parameters
from rlvr.learner.update import UpdateConfig, make_update_step
from rlvr.policy.transformer import Params, Policy


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
    ):
        partition.check_divisible("update.micro_rows", update.micro_rows, "batch", mesh)
        trainable = trainable or all_parameters(policy)
        self._trainable = trainable
        self._objective = objective
        self._config = update
        self._mesh = mesh
        self._max_skips = optimizer.max_skips
        self._max_length, self._max_columns = max_length, max_columns
        self._optimizer = make_optimizer(optimizer, steps)
        self._schedule = make_schedule(optimizer, steps)
        chunk = min(update.logprob_chunk, max_columns)
        self._update = make_update_step(
            policy, self._optimizer, objective, temperature=temperature, chunk=chunk, join=trainable.join
        )
        # Micro-batches are the leading axis; their rows are split over the mesh.
        self._rows = NamedSharding(mesh, PartitionSpec(None, partition.BATCH_AXES))

        def score(params: Params, frozen: Params | None, batch: TrainBatch) -> jax.Array:
            params = trainable.join(params, frozen)

            def one(micro: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
                return row_logprobs(policy, params, *micro, jnp.float32(temperature), chunk)[0]

            scores = jax.lax.map(one, (batch.tokens, batch.lengths, batch.positions))
            return jax.lax.with_sharding_constraint(scores, partition.replicated(mesh))

        def route(params: Params, frozen: Params | None, batch: TrainBatch) -> jax.Array:
            params = trainable.join(params, frozen)

            def one(micro: tuple[jax.Array, jax.Array]) -> jax.Array:
                tokens, lengths = micro
                positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
                valid = positions < lengths[:, None]
                choices = policy.forward(params, tokens, positions, valid=valid).choices
                assert choices is not None
                return choices.astype(jnp.int16)

            choices = jax.lax.map(one, (batch.tokens, batch.lengths))
            return jax.lax.with_sharding_constraint(choices, partition.replicated(mesh))

        self._score = jax.jit(score)
        self._route = jax.jit(route)

    def fresh(self, params: Params) -> TrainState:
        """Returns the state at the start of this stage."""
        return fresh_state(self._trainable, self._optimizer, params, self._mesh)

    def abstract(self) -> TrainState:
        """Returns the shapes and shardings of this stage's state."""
        return abstract_state(self._trainable, self._optimizer, self._mesh)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of an optimizer step of this stage (a skipped update does not count as a step)."""
        return float(self._schedule(step))

    def score(self, params: Params, rows: Sequence[Row]) -> list[np.ndarray]:
        """Returns the log-probs of each row's completion under `params`."""
        batch = self._layout(rows)
        scores = partition.host_value(self._score(params, self._trainable.frozen, self._put(batch)))
        flat = scores.reshape(-1, scores.shape[-1])
        return [flat[i, : len(row.completion)] for i, row in enumerate(rows)]

    def update(
        self, state: TrainState, rows: Sequence[Row], reference: Sequence[np.ndarray] | None = None
    ) -> tuple[TrainState, dict[str, float]]:
        """Takes the optimizer steps of a rollout, one for each of its minibatches; the state given is consumed.

        Rows whose advantage is exactly zero are left out of the work where they have no gradient; the
        denominators stay those of all rows of the minibatch.

        Args:
            rows: prompt by prompt, so that minibatches are made of whole groups.
            reference: log-probs of each row's completion under the start policy, if they are known.

        Returns:
            (the new state, metrics: means over the minibatches, but maxima for names ending in "max" and the sum
            of the skipped updates).

        Raises:
            FloatingPointError: too many updates in a row were skipped for non-finite gradients.
        """
        if self._objective.routing == "old":
            rows = self._record_choices(state.params, rows)
        size = len(rows) // self._config.minibatches
        seen: list[dict[str, float]] = []
        for start in range(0, len(rows), size):
            chosen = slice(start, start + size)
            own = None if reference is None else reference[chosen]
            state, metrics = self._step(state, rows[chosen], own)
            seen.append(metrics)
        reduce: dict[str, Callable[..., Any]] = {"max": np.max, "skipped": np.sum}
        return state, {
            name: float(next((f for end, f in reduce.items() if name.endswith(end)), np.mean)([m[name] for m in seen]))
            for name in seen[0]
        }

    def _record_choices(self, params: Params, rows: Sequence[Row]) -> list[Row]:
        """Returns the rows with the experts that `params` choose now."""
        choices = partition.host_value(self._route(params, self._trainable.frozen, self._put(self._layout(rows))))
        flat = choices.reshape(-1, *choices.shape[2:])
        lengths = [len(row.prompt) + len(row.completion) for row in rows]
        return [row._replace(old_choices=flat[i, : lengths[i]]) for i, row in enumerate(rows)]

    def _step(
        self, state: TrainState, rows: Sequence[Row], reference: Sequence[np.ndarray] | None
    ) -> tuple[TrainState, dict[str, float]]:
        live = len(rows)
        if not self._objective.needs_all_rows():
            order = sorted(range(len(rows)), key=lambda i: rows[i].advantage == 0.0)
            live = sum(row.advantage != 0.0 for row in rows)
            rows = [rows[i] for i in order]
            reference = None if reference is None else [reference[i] for i in order]
        batch = self._layout(rows)
        if reference is not None:
            flat = batch.reference_logprobs.reshape(-1, batch.reference_logprobs.shape[-1])
            for i, logprobs in enumerate(reference):
                flat[i, : len(logprobs)] = logprobs
        micros = max(-(-live // self._config.micro_rows), 1)
        state, metrics = self._update(state, self._put(batch), jnp.int32(micros), self._trainable.frozen)
        values = {name: float(partition.host_value(x)) for name, x in metrics.items()}
        if values.pop("optimizer/skipped_in_a_row") >= self._max_skips:
            raise FloatingPointError(
                f"{self._max_skips} updates in a row had non-finite gradients and were skipped; the last good "
                "checkpoint is untouched. Lower optimizer.learning_rate, or look at the last samples"
            )
        return state, values

    def _layout(self, rows: Sequence[Row]) -> TrainBatch:
        longest = max(len(row.prompt) + len(row.completion) for row in rows)
        if longest > self._max_length:
            raise errors.DataError(f"a row of {longest} tokens is longer than the {self._max_length} allowed")
        return make_batch(
            rows,
            micro_rows=self._config.micro_rows,
            length=bucket(longest, self._config.length_buckets, self._max_length),
            columns=self._max_columns,
            aggregation=self._objective.aggregation,
            budget=self._max_columns,
        )

    def _put(self, batch: TrainBatch) -> TrainBatch:
        return jax.tree.map(lambda leaf: partition.put(leaf, self._rows), batch)
