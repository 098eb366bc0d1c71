"""Both ways of tokens to experts on other shards, against every expert on every token without a mesh.

XLA has no `ragged_all_to_all` on CPU: here it is an all-gather and indexing, by the words of its documentation.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rlvr.errors import ConfigError
from rlvr.mesh import AXES, MeshConfig, make_mesh
from rlvr.policy.config import PolicyConfig
from rlvr.policy.dispatch import arrange_arrivals, dispatch, exchange
from rlvr.policy.experts import Experts, Projection

B, T, D, F, E, K, R = 8, 5, 12, 20, 8, 3, 2
MESHES = {
    "expert_tensor": MeshConfig(data=1, expert=4, tensor=2),
    "data_expert": MeshConfig(data=2, expert=4),
    "expert": MeshConfig(data=1, expert=8),  # one expert a shard, and fewer choices than shards
    "fsdp_expert_tensor": MeshConfig(data=1, fsdp=2, expert=2, tensor=2),  # more choices than shards
}
CONFIG = PolicyConfig(dim=D, experts=E, experts_per_token=K, expert_hidden=F, moe_layers=(0,))


def emulated(
    operand: jax.Array,
    output: jax.Array,
    input_offsets: jax.Array,
    send_sizes: jax.Array,
    output_offsets: jax.Array,
    recv_sizes: jax.Array,
    *,
    axis_name: str,
) -> jax.Array:
    """One slice a shard: output[o : o + n] = operand of shard s [i : i + n], with i, n and o from the sender."""
    me = jax.lax.axis_index(axis_name)
    gather = functools.partial(jax.lax.all_gather, axis_name=axis_name)
    operands, begins, sizes, lands = (gather(a) for a in (operand, input_offsets, send_sizes, output_offsets))
    consistent = jnp.all(jnp.take(sizes, me, axis=1) == recv_sizes)
    row = jnp.arange(output.shape[0])
    for source in range(operands.shape[0]):
        begin, size, land = (jnp.take(a[source], me) for a in (begins, sizes, lands))
        within = (row >= land) & (row < land + jnp.where(consistent, size, 0))
        sent = operands[source][jnp.clip(row - land + begin, 0, operand.shape[0] - 1)]
        output = jnp.where(within[:, None], sent, output)
    return jnp.where(consistent, output, jnp.nan)


def test_the_emulation_does_what_the_example_in_jax_says() -> None:
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    operand = jnp.array([1.0, 2, 2, 3, 4, 0])[:, None]
    sizes = [jnp.array(a, jnp.int32) for a in ([0, 1, 0, 1], [1, 2, 1, 1], [0, 0, 1, 2], [1, 1, 2, 1])]
    rows = PartitionSpec("a")
    call = functools.partial(emulated, axis_name="a")
    run = jax.shard_map(call, mesh=mesh, in_specs=(rows,) * 6, out_specs=rows)
    out = run(operand, jnp.zeros((8, 1)), *sizes)
    np.testing.assert_array_equal(out[:, 0], [1, 3, 0, 0, 2, 2, 4, 0])


def inputs(routing: str) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.5, jnp.float32)  # noqa: E731
    shapes = ((D, F), (D, F), (F, D))
    weights = Experts(*(Projection(draw(E, i, o), draw(E, o), draw(E, i, R), draw(E, R, o)) for i, o in shapes))
    choices = np.argsort(rng.random((B, T, E)), axis=-1)[..., :K]
    if routing == "to_one_shard":  # the worst case where a shard holds K experts: nothing may be dropped
        choices = np.broadcast_to(np.array([5, 4, 7]), (B, T, K))
    elif routing == "none_to_some":
        choices = np.argsort(rng.random((B, T, 3)), axis=-1) + 1
    gates = jnp.asarray(rng.uniform(0.1, 1.0, size=(B, T, K)), jnp.float32)
    return draw(B, T, D), jnp.asarray(choices, jnp.int32), gates, weights, draw(B, T, D)


def loss(x: jax.Array, gates: jax.Array, weights: Experts, choices: jax.Array, slope: jax.Array, config: Any) -> Any:
    out = dispatch(x, choices, gates, weights, config)
    return jnp.sum(out * slope), out


def value_and_gradients(routing: str, **changes: str) -> Any:
    x, choices, gates, weights, slope = inputs(routing)
    config = dataclasses.replace(CONFIG, **changes)
    config.validate()
    run = jax.jit(jax.value_and_grad(functools.partial(loss, config=config), argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = run(x, gates, weights, choices, slope)
    return jax.device_get((out, gradients))


@functools.cache
def oracle(routing: str) -> Any:
    return value_and_gradients(routing, moe_backend="dense")


CASES = [  # exchange, form of the experts, routing, mesh
    ("ragged", "blocked", "random", "expert_tensor"),
    ("ragged", "blocked", "to_one_shard", "expert_tensor"),
    ("ragged", "blocked", "none_to_some", "data_expert"),
    ("ragged", "blocked", "random", "expert"),
    ("ragged", "blocked", "to_one_shard", "expert"),
    ("ragged", "blocked", "random", "fsdp_expert_tensor"),
    ("ragged", "ragged", "to_one_shard", "data_expert"),
    ("ragged", "ragged", "none_to_some", "expert_tensor"),
    ("gather", "blocked", "none_to_some", "expert_tensor"),
    ("gather", "ragged", "random", "fsdp_expert_tensor"),
]


@pytest.mark.parametrize(("exchange", "backend", "routing", "mesh"), CASES)
def test_an_exchange_is_the_oracle_in_value_and_gradient(
    exchange: str, backend: str, routing: str, mesh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = oracle(routing)
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", emulated)
    with jax.set_mesh(make_mesh(MESHES[mesh])):
        got = value_and_gradients(routing, moe_exchange=exchange, moe_backend=backend)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


def test_tokens_arrive_by_shard_and_those_with_most_rows_first() -> None:
    chosen = jnp.array([0, 1, 3, 1, 2, 0, 3, 3])  # of two shards' four tokens each
    order, inverse = arrange_arrivals(chosen, 4, 3)
    np.testing.assert_array_equal(order, [2, 1, 3, 6, 7, 4, 0, 5])
    np.testing.assert_array_equal(order[inverse], np.arange(8))


def test_the_exchange_follows_the_platform_and_the_number_of_shards() -> None:
    x, choices, gates, weights, _ = inputs("random")
    with jax.set_mesh(make_mesh(MESHES["expert"])):
        run = functools.partial(dispatch, config=CONFIG)
        text = str(jax.make_jaxpr(run)(x, choices, gates, weights))
        assert "ragged_all_to_all" not in text and "while" in text
        forced = functools.partial(dispatch, config=dataclasses.replace(CONFIG, moe_exchange="ragged"))
        assert "ragged_all_to_all" in str(jax.make_jaxpr(forced)(x, choices, gates, weights))
    of_eight = dataclasses.replace(CONFIG, experts_per_token=8)
    assert [exchange(of_eight, shards, "tpu") for shards in (2, 8, 16)] == ["gather", "gather", "ragged"]
    assert exchange(of_eight, 16, "cpu") == "gather"
    assert exchange(dataclasses.replace(of_eight, moe_exchange="ragged"), 2, "tpu") == "ragged"
    with pytest.raises(ConfigError, match=r"moe_exchange='nccl'.*ragged"):
        dataclasses.replace(CONFIG, moe_exchange="nccl").validate()


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x4"])
def test_tpu_programs_exchange_tokens_raggedly(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward compile with the real TPU compiler, which needs no TPU."""
    pytest.importorskip("libtpu", reason="the extra `tpu` is not installed")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it holds no chip
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = jax.make_mesh((1, 1, len(devices), 1), AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)
    dim, hidden, tokens = 256, 128, 64
    config = PolicyConfig(
        dim=dim, experts=16, experts_per_token=4, expert_hidden=hidden, dtype="bfloat16", moe_exchange="ragged"
    )

    def abstract(axis: str | None, *shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(axis)))

    rows = len(devices)
    x = abstract("expert", rows, tokens, dim)
    gates = abstract("expert", rows, tokens, 4, dtype=jnp.float32)
    choices = abstract("expert", rows, tokens, 4, dtype=jnp.int32)
    wide, narrow = (Projection(abstract("expert", 16, *s)) for s in ((dim, hidden), (hidden, dim)))
    with jax.set_mesh(mesh):
        run = jax.jit(jax.grad(functools.partial(loss, config=config), argnums=(0, 1, 2), has_aux=True))
        text = run.lower(x, gates, Experts(wide, wide, narrow), choices, x).compile().as_text()
    assert len(re.findall(r"= \S+ ragged-all-to-all(?:-start)?\(", text)) >= 4  # there and back, forward and backward
    gathered = re.findall(r"= (.*?) all-gather(?:-start)?\(", text)
    assert gathered and not any(f",{dim}]" in shape for shape in gathered), gathered  # choices and gates only
