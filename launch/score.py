"""Scores tokens: python -m launch.score --checkpoint=DIR --input=rows.jsonl --output=out.jsonl.

A row is {"tokens": [ids]} with at least two ids; it gets {"logprobs": [...]}, the log-probability in nats of
tokens 1 to n-1, each given those before it, by the same function that trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from launch import checkpoints, cli
from rlvr import errors, partition
from rlvr.checkpoint import LoadedPolicy
from rlvr.data.rows import read_rows
from rlvr.learner.logprobs import row_logprobs

_INPUT = flags.DEFINE_string("input", None, "JSON Lines of token ids.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "JSON Lines of log-probs.", required=True)
_ROWS = flags.DEFINE_integer("rows", 8, "Rows scored together.", lower_bound=1)
_CHUNK = 64  # tokens of each row whose logits exist at a time
_LENGTH_STEP = 64  # rows are padded to a multiple of this, so that few programs are compiled


def read_tokens(rows: list[dict[str, Any]], vocab: int) -> list[list[int]]:
    """Returns the ids of each row, checked."""
    for number, row in enumerate(rows, 1):
        tokens = row.get("tokens")
        if not isinstance(tokens, list) or len(tokens) < 2 or not all(type(t) is int for t in tokens):
            raise errors.DataError(f"row {number}: tokens={str(tokens)[:80]} must be a list of at least 2 integers")
        outside = [t for t in tokens if not 0 <= t < vocab]
        if outside:
            raise errors.DataError(f"row {number}: token {outside[0]} is not in the vocabulary 0 to {vocab - 1}")
    return [row["tokens"] for row in rows]


def score_rows(loaded: LoadedPolicy, rows: list[list[int]], together: int) -> list[list[float]]:
    """Returns the log-probs of tokens 1 to n-1 of each row; call within a mesh."""

    @jax.jit
    def score(params: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        scored = jnp.broadcast_to(jnp.arange(1, tokens.shape[1]), (tokens.shape[0], tokens.shape[1] - 1))
        return row_logprobs(loaded.policy, params, tokens, lengths, scored, jnp.float32(1.0), _CHUNK)[0]

    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    scores: dict[int, list[float]] = {}
    for start in range(0, len(rows), together):
        chosen = order[start : start + together]
        longest = max(len(rows[i]) for i in chosen)
        tokens = np.zeros((together, -(-longest // _LENGTH_STEP) * _LENGTH_STEP), np.int32)
        lengths = np.zeros(together, np.int32)
        for place, i in enumerate(chosen):
            tokens[place, : len(rows[i])] = rows[i]
            lengths[place] = len(rows[i])
        values = np.asarray(score(loaded.params, tokens, lengths))
        scores |= {i: values[place, : len(rows[i]) - 1].tolist() for place, i in enumerate(chosen)}
    return [scores[i] for i in range(len(rows))]


def main(argv: Sequence[str]) -> None:
    """Scores every row."""
    del argv
    rows = [row for _, row in read_rows(Path(_INPUT.value))]
    with checkpoints.loaded() as (loaded, mesh):
        shards = partition.batch_shards(mesh)
        tokens = read_tokens(rows, loaded.policy.config.vocab_size)
        scores = score_rows(loaded, tokens, -(-_ROWS.value // shards) * shards)
    checkpoints.write_rows(Path(_OUTPUT.value), ({**row, "logprobs": s} for row, s in zip(rows, scores, strict=True)))
    print(f"wrote log-probs of {len(rows)} rows to {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main)
