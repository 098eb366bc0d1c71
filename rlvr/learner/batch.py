"""Rows for the learner: prompt and completion side by side, padded at the end, in micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlvr import errors
from rlvr.algo.aggregation import AGGREGATIONS


class TrainBatch(NamedTuple):
    """One optimizer step's rows as M micro-batches of R rows; every leaf is an array [M, R, ...].

    Attributes:
        tokens: [M, R, T] int32.
        lengths: [M, R] int32 tokens that are not padding; 0 for a row that only fills up.
        positions: [M, R, C] int32 positions of the sampled tokens in their rows.
        mask: [M, R, C] bool, 1 on sampled tokens only.
        old_logprobs: [M, R, C] float32, recorded at sampling.
        reference_logprobs: [M, R, C] float32 of the start policy; zeros if the objective has no KL term.
        advantages: [M, R, C] float32.
        weights: [M, R, C] float32 of each token in the loss (`rlvr.algo.aggregation`).
        choices: [M, R, T, mixture layers, k] int16 experts recorded at sampling, -1 where there are none; or None.
        old_choices: the same as the policy would choose before the first of the step's updates, or None.
    """

    tokens: Any
    lengths: Any
    positions: Any
    mask: Any
    old_logprobs: Any
    reference_logprobs: Any
    advantages: Any
    weights: Any
    choices: Any = None
    old_choices: Any = None


class Row(NamedTuple):
    """One sequence to learn from.

    Attributes:
        prompt, completion: token ids.
        old_logprobs: [C] of the completion at sampling.
        advantage: of every sampled token.
        group: sequences with equal numbers were sampled from one prompt.
        choices: experts recorded at sampling (`rlvr.types.Completion`); all rows of a batch have them, or none.
        old_choices: the same as chosen before the step's first update, or None.
    """

    prompt: Sequence[int]
    completion: np.ndarray
    old_logprobs: Any
    advantage: float
    group: int
    choices: np.ndarray | None = None
    old_choices: np.ndarray | None = None


def make_batch(
    rows: Sequence[Row], *, micro_rows: int, length: int, columns: int, aggregation: str, budget: int
) -> TrainBatch:
    """Lays out rows as micro-batches.

    Args:
        rows: the rows of one optimizer step, in the order they are to be processed.
        micro_rows: R.
        length: T, at least the longest prompt + completion.
        columns: C, at least the longest completion.
        aggregation: key of `AGGREGATIONS`.
        budget: the generation budget, for `seq_sum_norm`.
    """
    longest = max(len(row.prompt) + len(row.completion) for row in rows)
    if longest > length or max(len(row.completion) for row in rows) > columns:
        raise errors.DataError(f"a row of {longest} tokens does not fit the {length} (completion {columns}) it has")
    micros = -(-len(rows) // micro_rows)
    batch = TrainBatch(
        tokens=np.zeros((micros * micro_rows, length), np.int32),
        lengths=np.zeros(micros * micro_rows, np.int32),
        positions=np.zeros((micros * micro_rows, columns), np.int32),
        mask=np.zeros((micros * micro_rows, columns), bool),
        old_logprobs=np.zeros((micros * micro_rows, columns), np.float32),
        reference_logprobs=np.zeros((micros * micro_rows, columns), np.float32),
        advantages=np.zeros((micros * micro_rows, columns), np.float32),
        weights=np.zeros((micros * micro_rows, columns), np.float32),
    )
    for field in ("choices", "old_choices"):
        if (given := getattr(rows[0], field)) is not None:
            shape = (micros * micro_rows, length, *given.shape[1:])
            batch = batch._replace(**{field: np.full(shape, -1, np.int16)})
    sampled = np.array([len(row.completion) for row in rows])
    weights = AGGREGATIONS[aggregation](sampled, np.array([row.group for row in rows]), budget)
    for i, row in enumerate(rows):
        start, count = len(row.prompt), len(row.completion)
        batch.tokens[i, :start] = row.prompt
        batch.tokens[i, start : start + count] = row.completion
        batch.lengths[i] = start + count
        batch.positions[i, :count] = np.arange(start, start + count)
        batch.mask[i, :count] = True
        batch.old_logprobs[i, :count] = row.old_logprobs
        batch.advantages[i, :count] = row.advantage
        batch.weights[i, :count] = weights[i]
        for field in ("choices", "old_choices"):
            if (given := getattr(row, field)) is not None:
                getattr(batch, field)[i, : start + count] = given
    return jax.tree.map(lambda leaf: leaf.reshape(micros, micro_rows, *leaf.shape[1:]), batch)


def bucket(length: int, buckets: Sequence[int], limit: int) -> int:
    """Returns the smallest of the buckets (and the limit) that holds `length`."""
    return min(b for b in (*buckets, limit) if b >= length)
