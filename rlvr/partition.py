"""Logical axes -> mesh axes: one table, and the few functions that read it.

Parameters name their logical axes where they are declared (`rlvr.policy.parameters.param`); activations are pinned
by `constrain`. Nothing else in the project names a mesh axis, but for the manual parts of the mixture layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rlvr import errors

Axes = tuple[str | None, ...]

BATCH_AXES = ("data", "fsdp", "expert")

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": BATCH_AXES,  # rows, cache slots
    "vocab": "tensor",
    "embed": "fsdp",  # D of parameters; D of activations is never split
    "query_heads": "tensor",
    "kv_heads": "tensor",
    "hidden": "tensor",
    "experts": "expert",
    "expert_hidden": "tensor",
}


# Where an array may rest -> the kind of memory that JAX calls it by; None is the devices' own.
MEMORIES: Mapping[str, str | None] = {"device": None, "host": "pinned_host"}


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Returns the PartitionSpec of logical axes; None is not split."""
    return PartitionSpec(*(None if axis is None else RULES[axis] for axis in axes))


def current_mesh() -> AbstractMesh | None:
    """Returns the mesh set by `jax.set_mesh`, or None where there is none or it has one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform() -> str:
    """Returns what the program is made for, "cpu", "gpu" or "tpu": the devices of the mesh set, else the default.

    A program may be compiled for devices that are not here.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name: str = jax.default_backend() if device is None or device.platform is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to the sharding of its logical axes, where there is a mesh to split it over."""
    if current_mesh() is None:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def shardings(mesh: Mesh, axes: Any) -> Any:
    """Returns the tree of NamedShardings of a tree of logical-axes tuples."""
    return jax.tree.map(lambda a: NamedSharding(mesh, spec(a)), axes, is_leaf=lambda a: isinstance(a, tuple))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def in_memory(sharding: NamedSharding, memory: str) -> NamedSharding:
    """Returns a sharding whose arrays rest in a memory: a key of `MEMORIES`."""
    return sharding.with_memory_kind(kind) if (kind := MEMORIES[memory]) else sharding


def check_memory(field: str, memory: str, mesh: Mesh) -> None:
    """Raises ConfigError unless the devices of a mesh can reach a memory (a key of `MEMORIES`)."""
    kinds = sorted(place.kind for place in mesh.local_devices[0].addressable_memories())
    if (kind := MEMORIES[memory]) and kind not in kinds:
        raise errors.ConfigError(
            f"{field}={memory!r} needs devices with the memory {kind!r}; those of this run have {', '.join(kinds)} "
            "(accepted: 'device')"
        )


def batch_shards(mesh: Mesh) -> int:
    """Returns over how many shards rows are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_divisible(field: str, size: int, axis: str, mesh: Mesh) -> None:
    """Raises ConfigError unless `size` divides over the mesh axes of a logical axis."""
    rule = RULES[axis]
    if rule is None:
        return
    names = (rule,) if isinstance(rule, str) else rule
    shards = math.prod(mesh.shape[name] for name in names)
    if size % shards:
        raise errors.ConfigError(
            f"{field}={size} does not divide over mesh axes {' x '.join(names)} = {shards}: "
            f"it must be a multiple of {shards}"
        )


def host_value(x: jax.Array) -> Any:
    """Returns a replicated (or single-process) array as numpy, on every process."""
    return jax.device_get(x) if x.is_fully_addressable else x.addressable_data(0).__array__()


def put(x: Any, sharding: NamedSharding) -> jax.Array:
    """Places a host array that every process holds whole; each process keeps its shards."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
