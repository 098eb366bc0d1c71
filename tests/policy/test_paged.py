"""Attention over the cache by the kernel for TPUs, interpreted on CPU, against the form in JAX; and what the TPU's own
compiler makes of a step of decoding."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.literals import TypedInt
from jax.experimental import pallas as pl
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlvr import errors, partition
from rlvr.mesh import AXES
from rlvr.policy import cache as cache_lib
from rlvr.policy.cache import JoinedPages, Pages, make_pages
from rlvr.policy.config import PolicyConfig
from rlvr.policy.paged import attend_cache
from rlvr.policy.transformer import Policy
from rlvr.rollout import steps
from rlvr.rollout.config import EngineConfig
from rlvr.rollout.engine import Engine
from rlvr.rollout.sampling import Sampling
from rlvr.types import Request

Tiny = Callable[[str], tuple[Policy, Any]]
CONFIG = PolicyConfig(query_heads=12, kv_heads=4, head_size=10, layers=1)


@pytest.fixture
def like_tpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs are made as for a TPU, and its kernels interpreted."""
    monkeypatch.setattr(partition, "platform", lambda: "tpu")
    # Not `force_tpu_interpret_mode`: it does not know reshaped references, which this kernel has.
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
    monkeypatch.setattr(TypedInt, "shape", (), raising=False)
    yield


def mesh_of(devices: Any) -> Mesh:
    """Two shards of rows, each split over two devices by heads."""
    return jax.make_mesh((1, 2, 1, 2), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:4])


def attend(table: jax.Array, backend: str, start: np.ndarray, length: int, dtype: str, window: int) -> jax.Array:
    """Writes tokens from 0 on through the table, and attends from `length` of each row."""
    rows, size = start.size, 4
    shards, _, entries = table.shape
    config = dataclasses.replace(CONFIG, attention_backend=backend, dtype=dtype)
    rng = np.random.default_rng(3)

    def draw(heads: int, tokens: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(rows, tokens, heads, CONFIG.head_size)), dtype)

    total = entries * size
    key, value, query = draw(CONFIG.kv_heads, total), draw(CONFIG.kv_heads, total), draw(CONFIG.query_heads, length)
    (pages,) = make_pages(config, shards, 10, size)
    pages = cache_lib.write(pages, table, key, value, jnp.broadcast_to(jnp.arange(total), (rows, total)))
    assert isinstance(pages, JoinedPages if backend == "kernel" else Pages)
    positions = jnp.asarray(start[:, None] + np.arange(length), jnp.int32)
    return attend_cache(query, pages, table, positions, scale=0.4, window=window)


@pytest.mark.parametrize(
    ("length", "dtype", "window"), [(1, "float32", 0), (3, "float32", 5), (1, "bfloat16", 5), (3, "bfloat16", 0)]
)
def test_the_kernel_is_the_form_in_jax(like_tpu: None, length: int, dtype: str, window: int) -> None:
    """Rows of two pools; ends within pages and at their edges; entries without a page."""
    table = np.array([[[7, 2, 10, 10], [0, 9, 4, 1]], [[3, 6, 5, 10], [9, 10, 10, 10]]], np.int32)
    start = np.array([4, 13 - length, 9, 0])
    options = {"start": start, "length": length, "dtype": dtype, "window": window}
    with jax.set_mesh(mesh_of(jax.devices())):
        expected, got = (
            np.asarray(jax.jit(functools.partial(attend, backend=backend, **options))(table), np.float32)
            for backend in ("jax", "kernel")
        )
    np.testing.assert_allclose(got, expected, atol=2e-6 if dtype == "float32" else 2e-2)
    assert np.max(np.abs(expected)) > 0.3


def test_an_engine_with_the_kernel_samples_the_same(like_tpu: None, tiny_policy: Tiny) -> None:
    """Prompts that share pages, pages that are given on, and two rows that start at different times."""
    policy, params = tiny_policy("dense")
    requests = [Request(2 * p + s, p, s, tuple(range(p, 3 * p + 2))) for p in range(3) for s in range(2)]
    sizes = EngineConfig(
        slots=2, max_prompt_tokens=8, max_new_tokens=5, prefill_rows=2, decode_steps=2, page_tokens=4, cache_tokens=28
    )
    mesh = jax.make_mesh((1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:1])

    def run(backend: str) -> Any:
        own = Policy(dataclasses.replace(policy.config, attention_backend=backend))
        with jax.set_mesh(mesh):
            return Engine(own, sizes, (5,), mesh).generate(params, requests, jax.random.key(1), temperature=1.0)

    for a, b in zip(run("jax"), run("auto"), strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "they are for TPUs, and this program is made for cpu"),
        ({"sinks": True}, "policy.sinks=True, and the one that reads the cache knows no sinks"),
        ({"kv_heads": 6}, "policy.kv_heads=6 over mesh.tensor=2 must leave each device 1, 2, 4"),
    ],
)
def test_a_kernel_that_cannot_be_had_is_refused(
    fields: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, **fields)
    if fields:
        monkeypatch.setattr(partition, "platform", lambda: "tpu")
    with jax.set_mesh(mesh_of(jax.devices())):
        assert cache_lib.pages_type(config) is Pages  # by itself
        with pytest.raises(errors.ConfigError, match=rf"attention_backend='kernel'.*{words}.*'auto' and 'jax'"):
            cache_lib.pages_type(dataclasses.replace(config, attention_backend="kernel"))


@pytest.mark.parametrize(("topology", "head", "sinks"), [("v5e:2x4", 64, False), ("v5p:2x2x1", 64, True)])
def test_a_step_of_decoding_for_tpus_copies_no_pages(
    topology: str, head: int, sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernel, and with sinks by the form in JAX: compiled by the real compiler, which needs no TPU."""
    pytest.importorskip("libtpu", reason="the extra `tpu` is not installed")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it holds no chip
    mesh = mesh_of(topologies.get_topology_desc(topology, platform="tpu").devices)
    config = PolicyConfig(
        dim=256, layers=2, query_heads=16, kv_heads=4, head_size=head, hidden=256, dtype="bfloat16", sinks=sinks
    )
    policy, slots, pages = Policy(config), 16, 1031
    shapes, axes = policy.abstract_params(), policy.logical_axes()

    def abstract(shape: Any, *names: str | None) -> Any:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(mesh, partition.spec(names)))

    def shaped(shape: tuple[int, ...], dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    with jax.set_mesh(mesh):
        params = jax.tree.map(lambda a, s: abstract(s, *a), axes, shapes, is_leaf=lambda x: isinstance(x, tuple))
        form = cache_lib.pages_type(config)
        assert form is (Pages if sinks else JoinedPages)
        layers = jax.tree.map(
            lambda s: abstract(s, *cache_lib.AXES[form]), jax.eval_shape(lambda: make_pages(config, 2, pages, 16))
        )
        rows = steps.Rows(*(shaped((slots,)) for _ in range(4)), shaped((slots, 2), jnp.uint32), shaped((2, 8, 60)))
        sampling = Sampling(shaped((), jnp.float32), shaped(()), *(shaped((), jnp.float32),) * 2, None)
        run = jax.jit(
            lambda *a: steps.decode(policy, *a, (0,), 4, filtered=False),
            donate_argnums=1,
            out_shardings=(layers[0][0].sharding, NamedSharding(mesh, PartitionSpec())),
        )
        compiled = run.lower(params, layers, rows, sampling).compile()
    text = compiled.as_text()
    assert ("ragged_paged_attention_kernel" in text) != sinks
    assert not re.findall(rf"= \S*\[(?:\d+,)?{pages},\S* (?:copy|copy-start|transpose)\(", text)
    one = pages * 16 * config.kv_heads // 2 * 128 * 2  # bytes of the keys of one layer on a device, in 128 lanes
    assert compiled.memory_analysis().temp_size_in_bytes < one
