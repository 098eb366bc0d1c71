"""Log-probs of given sequences under a policy: the learner's reference scores, and those that a user asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlvr import partition
from rlvr.learner.batch import Place, Row, TrainBatch, make_batches
from rlvr.learner.logprobs import run_rows, token_logprobs
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
        length = row_length(max(len(row.prompt) + len(row.completion) for row in rows), self.row_tokens)
        shards = partition.batch_shards(self.mesh)
        micro_rows = max(self.micro_tokens // (length * shards), 1) * shards
        return make_batches(rows, micro_rows=micro_rows, length=length, weights=weights, reference=reference)

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
        return [
            scores[at.batch][at.row, at.scored : at.scored + len(row.completion)]
            for at, row in zip(places, rows, strict=True)
        ]

    return score
