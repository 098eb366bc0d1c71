"""The only place that makes meshes and joins processes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from rlvr import errors

AXES = ("data", "fsdp", "expert", "tensor")


@dataclasses.dataclass
class MeshConfig:
    """Sizes of the mesh axes; -1 for `data` takes the devices that the others leave.

    Attributes:
        data: replicas that split the rows.
        fsdp: as `data`, with parameters and optimizer state split too.
        expert: splits the experts (and the rows outside the mixture layers).
        tensor: splits heads, hidden widths and the vocabulary.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1

    def validate(self) -> None:
        """Raises ConfigError naming the axis that cannot work."""
        for axis in AXES:
            size = getattr(self, axis)
            if size < 1 and not (axis == "data" and size == -1):
                raise errors.ConfigError(
                    f"mesh.{axis}={size} must be at least 1" + (" (or -1: the rest)" if axis == "data" else "")
                )


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of all processes' devices (or of those given), axes `AXES`, automatic sharding.

    Raises:
        ConfigError: the axes do not multiply to the number of devices.
    """
    config.validate()
    count = jax.device_count() if devices is None else len(devices)
    sizes = [getattr(config, axis) for axis in AXES]
    if sizes[0] == -1:
        sizes[0] = max(count // math.prod(sizes[1:]), 1)
    if math.prod(sizes) != count:
        shape = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
        raise errors.ConfigError(
            f"mesh ({shape}) wants {math.prod(sizes)} devices; this run has {count}. "
            "The axis sizes must multiply to the number of devices (mesh.data=-1 takes the rest)"
        )
    types = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    except NotImplementedError:
        # The torus has no sides that multiply to these axes: they are laid along parts of its sides. JAX leaves that to
        # whoever asks, as such an axis shares its links with another.
        laid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(laid, AXES, axis_types=types)


def initialize_distributed(coordinator: str, processes: int, process_index: int) -> None:
    """Joins the processes of a multi-process run; on a TPU pod all three are found by JAX itself.

    Args:
        coordinator: "host:port" of process 0, "auto" to let JAX ask the cluster, or "" for a single process.
        processes: number of processes (with an explicit coordinator).
        process_index: this process (with an explicit coordinator).
    """
    if not coordinator:
        return
    if coordinator == "auto":
        jax.distributed.initialize()
        return
    if jax.config.values["jax_platforms"] == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process_index)
