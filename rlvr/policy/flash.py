"""Attention within packed rows as kernels for TPUs: the blocks, pairs and sums of `rlvr.policy.packed`, in Pallas.

JAX's own kernel for TPUs (splash attention) visits all pairs of blocks below the diagonal of a packed row, and knows a
shared prompt only as a mask of shape [T, T]. Here the pairs of which something is seen are listed first, and the last
axis of the grid runs over the list: by query block for the output and the queries' gradient, which add up in scratch
memory from one pair to the next, and by key block for the gradients of keys and values.

Scores stand transposed, keys by queries: what belongs to a query is then a row of lanes, and its maxima and sums run
over sublanes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rlvr import partition

NEVER = float(np.finfo(np.float32).min)
# Bytes of on-chip memory that a kernel may take, of 64 MB or more. The compiler's own limit is half of this, which the
# backward pass of 16 query heads a key head exceeds.
MEMORY = 32 * 2**20


class Plan(NamedTuple):
    """Pairs of blocks to visit, row by row.

    Attributes:
        first: [B, n] the block whose sums a pair adds to; the pairs of one stand together, and every block has one.
        second: [B, n] the other block.
        pairs: [B] how many of them are meant.
    """

    first: jax.Array
    second: jax.Array
    pairs: jax.Array


class Marks(NamedTuple):
    """What decides on visibility, as the kernels read it.

    Attributes:
        queries: [B, 3, T] positions, own and prefix segments as rows of lanes.
        keys: [B, T, 2] positions and own segments as columns.
    """

    queries: jax.Array
    keys: jax.Array


def make_marks(positions: jax.Array, own: jax.Array, prefix: jax.Array) -> Marks:
    """Packs positions and segments, each [B, T]."""
    return Marks(jnp.stack((positions, own, prefix), axis=1), jnp.stack((positions, own), axis=2))


def make_plan(seen: jax.Array) -> Plan:
    """Lists the pairs of seen [B, first blocks, second blocks], and those of a block with itself in any case."""
    count = seen.shape[1]
    seen = seen | jnp.eye(count, dtype=bool)[None]
    first, second = jax.vmap(lambda s: jnp.nonzero(s, size=count * count, fill_value=count - 1))(seen)
    return Plan(first.astype(jnp.int32), second.astype(jnp.int32), jnp.sum(seen, axis=(1, 2), dtype=jnp.int32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def attend_flash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    marks: Marks,
    seen: jax.Array,
    sink: jax.Array,
    scale: float,
    window: int,
) -> jax.Array:
    """Softmax attention: queries [B, K, g, T, h], keys and values [B, K, T, h] -> [B, K, g, T, h]; 0 in padding.

    Args:
        seen: [B, n, n] of which pairs of a block of queries and one of keys something is seen; T = n blocks.
        sink: [K, g].
        window: see `rlvr.policy.packed.visible`.
    """
    return _forward(query, key, value, marks, seen, sink, scale, window)[0]


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    marks: Marks,
    seen: jax.Array,
    sink: jax.Array,
    scale: float,
    window: int,
) -> tuple[jax.Array, Any]:
    def shard(plan: Plan, marks: Marks, sink: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array) -> Any:
        call = _Call(plan, query.shape, by_query=True)
        groups, block, head_size = call.sizes
        run = call.run(
            functools.partial(_forward_kernel, scale=scale, window=window),
            ("query_marks", "key_marks", "sink", "query", "key", "key_columns"),
            (("query", query.shape, query.dtype), ("statistic", query.shape[:-1], jnp.float32)),
            ((groups, block), (groups, block), (groups, head_size, block)),
        )
        return tuple(run(*marks, sink, query, key, value.swapaxes(2, 3)))

    out, normaliser = _over_mesh(shard, "rrhddd", "dd")(make_plan(seen), marks, sink, query, key, value)
    out, normaliser = checkpoint_name(out, "attended"), checkpoint_name(normaliser, "attended")
    return out, (query, key, value, marks, seen, sink, out, normaliser)


def _backward(scale: float, window: int, saved: Any, bar: jax.Array) -> tuple[Any, ...]:
    query, key, value, marks, seen, sink, out, normaliser = saved
    drop = jnp.sum(bar.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)  # [B, K, g, T]
    inputs = ("query_marks", "key_marks", "query", "key", "key", "query", "statistic", "statistic")

    def by_queries(plan: Plan, marks: Marks, *arrays: jax.Array) -> Any:
        query, key = arrays[:2]
        call = _Call(plan, query.shape, by_query=True)
        groups, block, head_size = call.sizes
        kernel = functools.partial(_query_kernel, scale=scale, window=window)
        results = (("query", query.shape, query.dtype),)
        run = call.run(kernel, (*inputs, "key_columns"), results, ((groups, head_size, block),))
        return run(*marks, *arrays, key.swapaxes(2, 3))[0]

    def by_keys(plan: Plan, marks: Marks, *arrays: jax.Array) -> Any:
        query, key, value = arrays[:3]
        call = _Call(plan, query.shape, by_query=False)
        _, block, head_size = call.sizes
        kernel = functools.partial(_key_kernel, scale=scale, window=window)
        results = (("key", key.shape, key.dtype), ("key", value.shape, value.dtype))
        return tuple(call.run(kernel, inputs, results, ((block, head_size),) * 2)(*marks, *arrays))

    arrays = (query, key, value, bar, normaliser, drop)
    by_query = _over_mesh(by_queries, "rr" + "d" * 6, "d")(make_plan(seen), marks, *arrays)
    by_key, by_value = _over_mesh(by_keys, "rr" + "d" * 6, "dd")(make_plan(seen.swapaxes(1, 2)), marks, *arrays)
    by_sink = -jnp.sum(jnp.exp(sink[None, :, :, None] - normaliser) * drop, axis=(0, 3))
    nothing = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), (marks, seen))
    return by_query, by_key, by_value, *nothing, by_sink


attend_flash.defvjp(_forward, _backward)


def _over_mesh(function: Callable[..., Any], arguments: str, results: str) -> Callable[..., Any]:
    """Runs each shard on its own: "r" is split by rows [B, ...], "h" by heads [K, ...], "d" by both [B, K, ...]."""
    if partition.current_mesh() is None:
        return function
    axes: dict[str, tuple[str, ...]] = {"r": ("batch",), "h": ("kv_heads",), "d": ("batch", "kv_heads")}
    given, made = (tuple(partition.spec(axes[c]) for c in codes) for codes in (arguments, results))
    out: Any = made if len(made) > 1 else made[0]
    # Kernels do not say over which axes their results vary, which the check wants.
    return jax.shard_map(function, in_specs=given, out_specs=out, check_vma=False)


class _Call:
    """A grid over rows, heads of keys, and pairs of blocks, and the blocks that its kernels see.

    Args:
        plan: of the rows of a shard.
        shape: of the queries, [B, K, g, T, h].
        by_query: whether the plan's first blocks are of queries.
    """

    def __init__(self, plan: Plan, shape: tuple[int, ...], *, by_query: bool):
        self.plan = plan
        batch, heads, groups, length, size = shape
        block = length // round(plan.first.shape[1] ** 0.5)
        # As many steps as the fullest row has pairs; the others rest at the end.
        self.grid = (batch, heads, jnp.max(plan.pairs))
        self.sizes = groups, block, size

        def spec(sizes: tuple[int | None, ...], place: str) -> pl.BlockSpec:
            """Place: "b" the row, "k" the head, "q" and "c" the block of queries and of keys (columns), "0"."""

            def index(b: Any, k: Any, n: Any, first: Any, second: Any, pairs: Any) -> tuple[Any, ...]:
                one, other = first[b, n], second[b, n]
                q, c = (one, other) if by_query else (other, one)
                at = {"b": b, "k": k, "q": q, "c": c, "0": 0}
                return tuple(at[letter] for letter in place)

            return pl.BlockSpec(sizes, index)

        self.specs = {
            "query_marks": spec((None, 3, block), "b0q"),
            "key_marks": spec((None, block, 2), "bc0"),
            "sink": pl.BlockSpec(memory_space=pltpu.SMEM),
            "query": spec((None, None, groups, block, size), "bk0q0"),
            "statistic": spec((None, None, groups, block), "bk0q"),
            "key": spec((None, None, block, size), "bkc0"),
            "key_columns": spec((None, None, size, block), "bk0c"),
        }

    def run(
        self,
        kernel: functools.partial[None],
        inputs: Sequence[str],
        results: Sequence[tuple[str, tuple[int, ...], Any]],
        scratch: Sequence[tuple[int, ...]],
    ) -> Callable[..., Any]:
        """Returns the kernel as a function of arrays, named by their blocks; results are (block, shape, dtype)."""
        call = pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=3,
                grid=self.grid,
                in_specs=[self.specs[name] for name in inputs],
                out_specs=[self.specs[name] for name, _, _ in results],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            out_shape=[jax.ShapeDtypeStruct(shape, dtype) for _, shape, dtype in results],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=MEMORY
            ),
            name=kernel.func.__name__.strip("_"),
        )
        return functools.partial(call, *self.plan)


def _place(first: Any, pairs: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns whether this pair is meant, is the first of its first block, and is the last."""
    b, n = pl.program_id(0), pl.program_id(2)
    own, last = first[b, n], pairs[b] - 1
    begins = (n == 0) | (first[b, jnp.maximum(n - 1, 0)] != own)
    ends = (n == last) | (first[b, jnp.minimum(n + 1, last)] != own)
    meant = n <= last
    return meant, meant & begins, meant & ends


def _seen(queries: Any, keys: Any, window: int) -> jax.Array:
    """Returns [keys, queries]; see `rlvr.policy.packed.visible`."""
    at, own, prefix = (queries[i : i + 1, :] for i in range(3))
    key_at, key_own = keys[:, 0:1], keys[:, 1:2]
    distance = at - key_at
    seen = ((key_own == own) | (key_own == prefix)) & (distance >= 0) & (own >= 0)
    return seen & (distance < window) if window else seen


def _product(a: jax.Array, b: jax.Array, *, transposed: bool = False) -> jax.Array:
    """a [i, j] times b [j, k], or b [k, j] transposed, in float32."""
    dims = (((1,), (1 if transposed else 0,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _forward_kernel(
    first: Any, second: Any, pairs: Any, queries: Any, keys: Any, sink: Any, query: Any, key: Any, value: Any,
    out: Any, normaliser: Any, largest: Any, total: Any, sums: Any, *, scale: float, window: int,
) -> None:  # fmt: skip
    meant, begins, ends = _place(first, pairs)
    groups, k = query.shape[0], pl.program_id(1)

    @pl.when(begins)
    def start() -> None:
        for g in range(groups):
            logit = jnp.full((1, largest.shape[1]), sink[k, g])
            largest[g : g + 1, :] = logit
            # What has seen nothing yet weighs nothing, but for a sink.
            total[g : g + 1, :] = jnp.where(logit > NEVER, 1.0, 0.0)
        sums[...] = jnp.zeros_like(sums)

    @pl.when(meant)
    def add() -> None:
        seen = _seen(queries, keys, window)
        for g in range(groups):
            row = slice(g, g + 1)
            scores = _product(key[...], query[g], transposed=True) * scale
            before = largest[row, :]
            new = jnp.maximum(before, jnp.max(jnp.where(seen, scores, NEVER), axis=0, keepdims=True))
            exponentials = jnp.where(seen, jnp.exp(scores - new), 0.0)
            shrink = jnp.exp(before - new)
            largest[row, :] = new
            total[row, :] = total[row, :] * shrink + jnp.sum(exponentials, axis=0, keepdims=True)
            sums[g] = sums[g] * shrink + _product(value[...], exponentials.astype(value.dtype))

    @pl.when(ends)
    def finish() -> None:
        for g in range(groups):
            row = slice(g, g + 1)
            whole = jnp.where(total[row, :] > 0, total[row, :], 1.0)  # padding has seen nothing
            out[g] = jnp.transpose(sums[g] / whole).astype(out.dtype)
            normaliser[row, :] = largest[row, :] + jnp.log(whole)


def _slopes(
    g: int, seen: jax.Array, query: Any, key: Any, value: Any, bar: Any, normaliser: Any, drop: Any, scale: float
) -> tuple[jax.Array, jax.Array]:
    """Returns the probabilities of a pair of blocks, and the gradient by its scores, both [keys, queries]."""
    row = slice(g, g + 1)
    scores = _product(key[...], query[g], transposed=True) * scale
    p = jnp.where(seen, jnp.exp(scores - normaliser[row, :]), 0.0)
    by_p = _product(value[...], bar[g], transposed=True)
    return p, p * (by_p - drop[row, :]) * scale


def _query_kernel(
    first: Any, second: Any, pairs: Any, queries: Any, keys: Any, query: Any, key: Any, value: Any, bar: Any,
    normaliser: Any, drop: Any, columns: Any, by_query: Any, sums: Any, *, scale: float, window: int,
) -> None:  # fmt: skip
    meant, begins, ends = _place(first, pairs)

    @pl.when(begins)
    def start() -> None:
        sums[...] = jnp.zeros_like(sums)

    @pl.when(meant)
    def add() -> None:
        seen = _seen(queries, keys, window)
        for g in range(query.shape[0]):
            _, slope = _slopes(g, seen, query, key, value, bar, normaliser, drop, scale)
            sums[g] += _product(columns[...], slope.astype(columns.dtype))

    @pl.when(ends)
    def finish() -> None:
        for g in range(query.shape[0]):
            by_query[g] = jnp.transpose(sums[g]).astype(by_query.dtype)


def _key_kernel(
    first: Any, second: Any, pairs: Any, queries: Any, keys: Any, query: Any, key: Any, value: Any, bar: Any,
    normaliser: Any, drop: Any, by_key: Any, by_value: Any, key_sums: Any, value_sums: Any,
    *, scale: float, window: int,
) -> None:  # fmt: skip
    meant, begins, ends = _place(first, pairs)

    @pl.when(begins)
    def start() -> None:
        key_sums[...] = jnp.zeros_like(key_sums)
        value_sums[...] = jnp.zeros_like(value_sums)

    @pl.when(meant)
    def add() -> None:
        seen = _seen(queries, keys, window)
        for g in range(query.shape[0]):
            p, slope = _slopes(g, seen, query, key, value, bar, normaliser, drop, scale)
            key_sums[...] += _product(slope.astype(query.dtype), query[g])
            value_sums[...] += _product(p.astype(bar.dtype), bar[g])

    @pl.when(ends)
    def finish() -> None:
        by_key[...] = key_sums[...].astype(by_key.dtype)
        by_value[...] = value_sums[...].astype(by_value.dtype)
