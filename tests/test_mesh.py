"""Meshes, and the table from logical to mesh axes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from rlvr import errors, partition
from rlvr.mesh import AXES, MeshConfig, make_mesh


def test_data_takes_the_devices_that_are_left() -> None:
    assert dict(make_mesh(MeshConfig()).shape) == dict(zip(AXES, (8, 1, 1, 1), strict=True))
    assert dict(make_mesh(MeshConfig(expert=2, tensor=2)).shape) == dict(zip(AXES, (2, 1, 2, 2), strict=True))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(data=3), "wants 3 devices; this run has 8"),
        (MeshConfig(tensor=3), "this run has 8"),
        (MeshConfig(fsdp=16), "this run has 8"),
        (MeshConfig(data=0), "mesh.data=0"),
        (MeshConfig(expert=-1), "mesh.expert=-1"),
    ],
)
def test_sizes_that_do_not_multiply_are_refused(config: MeshConfig, words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        make_mesh(config)


def test_a_mesh_that_no_sides_of_the_torus_make_is_laid_along_parts_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("what JAX says of 8 x 8 on 4x4x4")

    monkeypatch.setattr(jax, "make_mesh", refuse)
    mesh = make_mesh(MeshConfig(fsdp=2, expert=2))
    assert dict(mesh.shape) == dict(zip(AXES, (2, 2, 2, 1), strict=True))
    assert sorted(device.id for device in mesh.devices.flat) == sorted(device.id for device in jax.devices())


def test_rules_name_mesh_axes_and_spec_reads_them() -> None:
    for rule in partition.RULES.values():
        assert rule is None or {rule} <= set(AXES) or set(rule) <= set(AXES)
    assert partition.spec(("batch", None, "kv_heads")) == PartitionSpec(("data", "fsdp", "expert"), None, "tensor")
    with pytest.raises(KeyError):
        partition.spec(("no such axis",))


def test_check_divisible_names_the_field_and_the_axes() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    assert partition.batch_shards(mesh) == 4
    partition.check_divisible("x", 12, "batch", mesh)
    with pytest.raises(errors.ConfigError, match=r"engine\.slots=6 .*data x fsdp x expert = 4"):
        partition.check_divisible("engine.slots", 6, "batch", mesh)


def test_constrain_splits_on_a_mesh_and_is_nothing_on_one_device() -> None:
    x = jnp.ones((8, 4))
    assert partition.constrain(x, "batch", "hidden") is x
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: partition.constrain(x, "batch", "hidden"))(x)
    assert y.sharding.is_equivalent_to(partition.shardings(mesh, {"a": ("batch", "hidden")})["a"], 2)
    assert y.addressable_shards[0].data.shape == (2, 2)
