"""Log-probs of given sequences under a policy: the learner's reference scores, and those that a user asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlvr import partition
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.selection import draw, select_high_covariance, select_high_entropy, select_small_moment
from rlvr.learner.batch import Place, Row, TrainBatch, empty_batch, make_batches
from rlvr.learner.logprobs import run_rows, token_logprobs, token_statistics
from rlvr.learner.packing import row_length
from rlvr.policy.transformer import Params, Policy


@dataclasses.dataclass(frozen=True)
class Layout:
    """How sequences become micro-batches on a mesh.

    Attributes:
        row_tokens, micro_tokens: see `rlvr.learner.update.UpdateConfig`.
        mesh: over which the rows are split.
    """

    row_tokens: int
    micro_tokens: int
    mesh: Mesh

    def lay_out(
        self, rows: Sequence[Row], weights: np.ndarray | None = None, reference: Sequence[np.ndarray] | None = None
    ) -> tuple[list[TrainBatch], list[Place]]:
        """Returns (micro-batches of host arrays, the place of each sequence); see `make_batches`."""
        length = row_length(max(row.longest_prompt + len(row.completion) for row in rows), self.row_tokens)
        micro_rows = self.micro_rows(length)
        return make_batches(rows, micro_rows=micro_rows, length=length, weights=weights, reference=reference)

    def micro_rows(self, length: int) -> int:
        """Returns how many rows of `length` tokens are a micro-batch."""
        shards = partition.batch_shards(self.mesh)
        return max(self.micro_tokens // (length * shards), 1) * shards

    def abstract(self, like: Row, length: int) -> TrainBatch:
        """Returns shapes and shardings of a micro-batch of sequences with the same optional fields as `like`."""
        sharding = NamedSharding(self.mesh, partition.spec(("batch",)))
        batch = empty_batch(like, self.micro_rows(length), length)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch)

    def put(self, batch: TrainBatch) -> TrainBatch:
        """Places a micro-batch, its rows split over the mesh."""
        sharding = NamedSharding(self.mesh, partition.spec(("batch",)))
        return jax.tree.map(lambda leaf: partition.put(leaf, sharding), batch)


Scorer = Callable[..., list[np.ndarray]]


def make_scorer(
    policy: Policy,
    layout: Layout,
    *,
    temperature: float,
    chunk: int,
    join: Callable[[Params, Params | None], Params] = lambda params, frozen: params,
) -> Scorer:
    """Returns `score(params, rows, frozen=None)`: the log-probs of each row's completion.

    Args:
        temperature: by which logits are divided.
        chunk: see `rlvr.learner.logprobs.token_logprobs`.
        join: see `rlvr.learner.trainable.Trainable`.
    """

    def step(params: Params, frozen: Params | None, batch: TrainBatch) -> jax.Array:
        params = join(params, frozen)
        hidden = run_rows(policy, params, batch).hidden
        scored = (batch.sources, batch.targets, batch.columns())
        return token_logprobs(policy, params, hidden, *scored, jnp.float32(temperature), chunk, batch.support)

    score_step = jax.jit(step, out_shardings=partition.replicated(layout.mesh))

    def score(params: Params, rows: Sequence[Row], frozen: Params | None = None) -> list[np.ndarray]:
        batches, places = layout.lay_out(rows)
        scores = [partition.host_value(score_step(params, frozen, layout.put(batch))) for batch in batches]
        return [take_row(scores, row, at) for row, at in zip(rows, places, strict=True)]

    return score


class Measured(NamedTuple):
    """Of one sequence's sampled tokens, [C] each."""

    logprobs: np.ndarray
    entropies: np.ndarray


def make_meter(
    policy: Policy,
    layout: Layout,
    *,
    temperature: float,
    chunk: int,
    routing: str,
    join: Callable[[Params, Params | None], Params] = lambda params, frozen: params,
) -> Callable[..., list[Measured]]:
    """Returns `measure(params, rows, frozen=None)`: log-probs and entropies of each row, as its loss will have them.

    Args:
        routing: see `ObjectiveConfig`; the experts are those of the loss.
        Others: see `make_scorer`.
    """

    def step(params: Params, frozen: Params | None, batch: TrainBatch) -> tuple[jax.Array, ...]:
        params = join(params, frozen)
        hidden = run_rows(policy, params, batch, batch.replay(routing)).hidden
        scored = (batch.sources, batch.targets, batch.columns())
        return token_statistics(policy, params, hidden, *scored, jnp.float32(temperature), chunk, batch.support)

    measure_step = jax.jit(step, out_shardings=partition.replicated(layout.mesh))

    def measure(params: Params, rows: Sequence[Row], frozen: Params | None = None) -> list[Measured]:
        batches, places = layout.lay_out(rows)
        found = [jax.tree.map(partition.host_value, measure_step(params, frozen, layout.put(b))) for b in batches]
        logprobs, entropies = zip(*found, strict=True)
        return [
            Measured(take_row(logprobs, row, at), take_row(entropies, row, at))
            for row, at in zip(rows, places, strict=True)
        ]

    return measure


def choose_tokens(objective: ObjectiveConfig, rows: Sequence[Row], measured: Sequence[Measured]) -> list[Row]:
    """Returns the rows of a minibatch with those of their tokens marked that the objective treats apart.

    Args:
        measured: of each row, under the policy before the minibatch's update.
    """
    out = list(rows)
    if objective.surrogate == "aspo" or objective.selection.top_entropy < 1:
        uncertain = select_high_entropy([m.entropies for m in measured], objective)
        out = [row._replace(high_entropy=own) for row, own in zip(out, uncertain, strict=True)]
    if objective.selection.covariance != "none":
        now = [m.logprobs for m in measured]
        recorded = {"rollout": "old_logprobs", "recomputed": "proximal_logprobs"}
        old = now if objective.old == "current" else [getattr(row, recorded[objective.old]) for row in rows]
        advantages = [np.broadcast_to(row.advantage, len(row.completion)) for row in rows]
        draws = [draw(np.asarray(r.prompt), r.completion, r.old_logprobs, count=len(r.completion)) for r in rows]
        driving = select_high_covariance(now, old, advantages, draws, objective)
        out = [row._replace(high_covariance=own) for row, own in zip(out, driving, strict=True)]
    if objective.selection.second_moment:
        near = select_small_moment([m.logprobs for m in measured], [row.old_logprobs for row in rows], objective)
        out = [row._replace(small_moment=own) for row, own in zip(out, near, strict=True)]
    return out


def take_row(values: Sequence[np.ndarray], row: Row, at: Place) -> np.ndarray:
    """Returns one sequence's sampled tokens out of the micro-batches' values [R, S]."""
    return values[at.batch][at.row, at.scored : at.scored + len(row.completion)]
