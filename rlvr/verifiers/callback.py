"""Verdicts inside a jitted program: a host callback per shard, for loops that never return to Python.

Under plain jit a callback runs once, on one device, with the whole batch. Inside a fully manual
`jax.shard_map` it runs once for every shard, on the host that owns it, so each host verifies its own rows in
its own pool.

The program waits for its verdicts. On CPU, XLA aborts a process whose devices wait much longer than half a
minute for one another at a collective: keep rows per shard x `VerifierConfig.timeout_s` / workers well below
that, or raise `--xla_cpu_collective_call_terminate_timeout_seconds`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from rlvr import errors, types
from rlvr.verifiers.pool import VerifierPool

# (completions [b, C] int32, lengths [b] int32, indices [b] int32) -> (scores [b] float32, statuses [b] int32)
ScoreFn = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def make_score_fn(pool: VerifierPool, tasks: Sequence[types.Task], decode: Callable[[np.ndarray], str]) -> ScoreFn:
    """Returns the host function that verifies the rows of one shard, all of them at once.

    Args:
        pool: this host's pool, open for as long as the function is called.
        tasks: the table that indices point into.
        decode: token ids [n] int32 -> text. Called from several threads at a time.

    Returns:
        a function whose statuses are positions in `types.STATUSES`, and whose score is NaN where the status is
        "error". It raises IndexError for an index outside `tasks` and ValueError for a length outside [0, C].
    """

    def score(completions: np.ndarray, lengths: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        completions, lengths, indices = (np.asarray(array) for array in (completions, lengths, indices))
        _check_rows(lengths, completions.shape[1], indices, len(tasks))
        futures = [
            pool.submit(tasks[index], decode(row[:length]), int(length))
            for row, length, index in zip(completions, lengths, indices, strict=True)
        ]
        verdicts = [future.result() for future in futures]
        scores = np.array([np.nan if v.score is None else v.score for v in verdicts], np.float32)
        statuses = np.array([types.STATUSES.index(verdict.status) for verdict in verdicts], np.int32)
        return scores, statuses

    return score


def _check_rows(lengths: np.ndarray, budget: int, indices: np.ndarray, tasks: int) -> None:
    """Raises for rows that would otherwise be misread silently: numpy counts negatives from the end."""
    outside = (indices < 0) | (indices >= tasks)
    if outside.any():
        raise IndexError(f"task index {indices[outside][0]} is not in [0, {tasks})")
    outside = (lengths < 0) | (lengths > budget)
    if outside.any():
        raise ValueError(f"completion length {lengths[outside][0]} is not in [0, {budget}]")


def verify_in_jit(
    score_fn: ScoreFn,
    completions: jax.Array,
    lengths: jax.Array,
    indices: jax.Array,
    *,
    mesh: jax.sharding.Mesh,
    axes: str | tuple[str, ...],
) -> tuple[jax.Array, jax.Array]:
    """Verifies every row exactly once, each on the host that holds its shard. Call it under jit or outside.

    Args:
        score_fn: the host function, e.g. of `make_score_fn`.
        completions: [B, C] int32 sampled token ids, sharded over `axes` along B.
        lengths: [B] int32 ids of each row that count; the rest is padding.
        indices: [B] int32 positions in the host's table of tasks.
        mesh: the mesh. Along its axes outside `axes` the rows are replicated; only the first replica calls.
        axes: the mesh axis or axes that B is sharded over.

    Returns:
        scores [B] float32 and statuses [B] int32 (positions in `types.STATUSES`), sharded like `lengths`. An
        unscorable row (status "error") has the score NaN, so that none passes for 0 unnoticed: replace it with
        `jnp.where` on the status before any product or sum.

    Raises:
        ConfigError: an axis that the mesh lacks, or B not a multiple of the number of shards.
    """
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    for axis in axes:
        errors.check_choice("axes", axis, mesh.axis_names)
    shards = math.prod(mesh.shape[axis] for axis in axes)
    if completions.shape[0] % shards:
        raise errors.ConfigError(
            f"a batch of {completions.shape[0]} rows is not a multiple of the {shards} shards over {axes}"
        )
    replicas = tuple(axis for axis in mesh.axis_names if axis not in axes)
    rows = jax.P(axes)
    verify_shard = jax.shard_map(
        functools.partial(_verify_shard, score_fn, replicas),
        mesh=mesh,
        in_specs=(rows, rows, rows),
        out_specs=(rows, rows),
        check_vma=False,  # the callback has no rule that says along which axes its results vary
    )
    return verify_shard(completions, lengths, indices)


def _verify_shard(
    score_fn: ScoreFn,
    replicas: tuple[str, ...],
    completions: jax.Array,
    lengths: jax.Array,
    indices: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Verifies the rows [b, C] of one shard; along the axes `replicas` the first device does it for all."""
    shape = lengths.shape

    def call(*rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        results = (jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.int32))
        return io_callback(score_fn, results, *rows, ordered=False)

    if not replicas:
        return call(completions, lengths, indices)

    def skip(*_: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)

    first = jax.lax.axis_index(replicas) == 0
    return jax.lax.psum(jax.lax.cond(first, call, skip, completions, lengths, indices), replicas)
