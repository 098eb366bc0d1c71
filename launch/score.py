"""Scores tokens: python -m launch.score --checkpoint=DIR --input=rows.jsonl --output=out.jsonl.

A row is {"tokens": [ids]} with at least two ids; it gets {"logprobs": [...]}, the log-probability in nats of
tokens 1 to n-1, each given those before it, by the same function that trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jax.sharding import Mesh

from launch import checkpoints, cli
from rlvr import errors
from rlvr.data.rows import read_rows
from rlvr.learner.batch import Row
from rlvr.learner.scoring import Layout, make_scorer
from rlvr.policy.config import PolicyConfig
from rlvr.policy_folder import LoadedPolicy

_INPUT = flags.DEFINE_string("input", None, "JSON Lines of token ids.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "JSON Lines of log-probs.", required=True)
_MICRO_TOKENS = flags.DEFINE_integer("micro_tokens", 2048, "Tokens run together, padding included.", lower_bound=1)
_ROW_TOKENS = 512  # length of the rows that sequences are packed into
_CHUNK = 256  # tokens whose logits exist at a time


def read_tokens(rows: list[dict[str, Any]], policy: PolicyConfig) -> list[list[int]]:
    """Returns the ids of each row. Raises DataError naming the first row that the policy cannot score."""
    vocab, limit = policy.vocab_size, policy.context_length
    for number, row in enumerate(rows, 1):
        tokens = row.get("tokens")
        if not isinstance(tokens, list) or len(tokens) < 2 or not all(type(t) is int for t in tokens):
            raise errors.DataError(f"row {number}: tokens={str(tokens)[:80]} must be a list of at least 2 integers")
        outside = [t for t in tokens if not 0 <= t < vocab]
        if outside:
            raise errors.DataError(f"row {number}: token {outside[0]} is not in the vocabulary 0 to {vocab - 1}")
        if limit and len(tokens) > limit:
            raise errors.DataError(
                f"row {number}: {len(tokens)} tokens are more than policy.context_length={limit}, which the weights "
                "were made for"
            )
    return [row["tokens"] for row in rows]


def score_rows(loaded: LoadedPolicy, rows: list[list[int]], mesh: Mesh, micro_tokens: int) -> list[list[float]]:
    """Returns the log-probs of tokens 1 to n-1 of each row; call within the mesh."""
    layout = Layout(min(_ROW_TOKENS, micro_tokens), micro_tokens, mesh)
    score = make_scorer(loaded.policy, layout, temperature=1.0, chunk=_CHUNK)
    sequences = [Row(tokens[:1], np.array(tokens[1:], np.int32), 0.0, 0.0, i) for i, tokens in enumerate(rows)]
    return [values.tolist() for values in score(loaded.params, sequences)]


def main(argv: Sequence[str]) -> None:
    """Scores every row."""
    cli.refuse_arguments(argv)
    rows, output = [row for _, row in read_rows(Path(_INPUT.value))], Path(_OUTPUT.value)
    checkpoints.check_output("output", output)
    with checkpoints.loaded() as (loaded, mesh):
        tokens = read_tokens(rows, loaded.policy.config)
        scores = score_rows(loaded, tokens, mesh, _MICRO_TOKENS.value)
    checkpoints.write_rows("output", output, ({**row, "logprobs": s} for row, s in zip(rows, scores, strict=True)))
    print(f"wrote log-probs of {len(rows)} rows to {output}")


if __name__ == "__main__":
    cli.run(main)
