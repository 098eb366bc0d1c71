"""Attention of rows by kernels for TPUs, interpreted on CPU, against the loops in JAX; and what the TPU's own compiler
makes of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding

from rlvr import partition
from rlvr.policy.packed import Segments, attend_packed
from rlvr.policy.transformer import Policy
from tests.policy.test_packed import FORMS, HEAD, POSITIONS, REAL, SEGMENTS, G, K, draw, one_by_one
from tests.policy.test_paged import mesh_of

Tiny = Callable[[str], tuple[Policy, Any]]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))


@pytest.mark.parametrize("form", FORMS)
def test_the_kernels_are_the_loops_in_value_and_gradient(interpreted: None, form: str) -> None:
    """25 tokens are 7 blocks of 4, of which each row visits other ones."""
    arrays, weights = draw(2, 25), np.random.default_rng(1).normal(size=(2, 25, K * G, HEAD)).astype(np.float32)
    weights[~REAL] = 0.0
    options = {"sinks": np.full(K * G, -40.0, np.float32), **FORMS[form]}  # so far below that it is none

    def run(flash: bool) -> Any:
        def scalar(query: jax.Array, key: jax.Array, value: jax.Array, sinks: jax.Array) -> Any:
            how: Any = {"scale": 0.4, "block": 4, "flash": flash, "window": options.get("window", 0), "sinks": sinks}
            out = attend_packed(query, key, value, jnp.asarray(POSITIONS), Segments(*SEGMENTS), **how)
            return jnp.sum(out**2 * weights), out

        (_, out), slopes = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2, 3), has_aux=True))(
            *arrays, options["sinks"]
        )
        return out, slopes

    out, slopes = run(flash=False)
    with jax.set_mesh(mesh_of(jax.devices())):
        got, got_slopes = run(flash=True)
    np.testing.assert_allclose(got[REAL], one_by_one(*arrays, **FORMS[form])[REAL], atol=3e-6)
    np.testing.assert_array_equal(np.asarray(got)[~REAL], np.asarray(out)[~REAL])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got_slopes, slopes)


def test_the_kernels_follow_the_platform(tiny_policy: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, params = tiny_policy("dense")
    forced = Policy(dataclasses.replace(policy.config, attention_backend="jax"))

    def kernels(policy: Policy, length: int) -> int:
        tokens = jnp.zeros((1, length), jnp.int32)
        return str(jax.make_jaxpr(policy.forward)(params, tokens, tokens)).count("pallas_call[")

    assert kernels(policy, 256) == 0
    monkeypatch.setattr(partition, "platform", lambda: "tpu")
    assert kernels(policy, 256) == policy.config.layers
    assert kernels(policy, 100) == kernels(forced, 256) == 0  # short rows are one dense product


@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x1"])
def test_tpu_programs_of_long_rows_hold_nothing_quadratic(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward compile with the real TPU compiler, which needs no TPU."""
    pytest.importorskip("libtpu", reason="the extra `tpu` is not installed")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it holds no chip
    mesh = mesh_of(topologies.get_topology_desc(topology, platform="tpu").devices)
    length, kv_heads, groups, head = 8192, 2, 3, 64

    def abstract(shape: tuple[int, ...], dtype: Any, *axes: str | None) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, partition.spec(axes)))

    def run(query: jax.Array, key: jax.Array, value: jax.Array, positions: jax.Array, own: jax.Array) -> jax.Array:
        out = attend_packed(query, key, value, positions, Segments(own, own), scale=0.1, flash=True)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    with jax.set_mesh(mesh):
        heads = [
            abstract((2, length, count, head), jnp.bfloat16, "batch", None, "kv_heads", None)
            for count in (kv_heads * groups, kv_heads, kv_heads)
        ]
        ids = [abstract((2, length), jnp.int32, "batch", None)] * 2
        compiled = jax.jit(jax.grad(run, argnums=(0, 1, 2))).lower(*heads, *ids).compile()
    text = compiled.as_text()
    assert all(f"{name}_kernel" in text for name in ("forward", "query", "key"))
    assert compiled.memory_analysis().temp_size_in_bytes < length * length  # a byte a pair, for no head
