"""The mesh as flags, for the entry points that have no config: --fsdp, --expert, --tensor; replicas take the rest."""

from __future__ import annotations

from absl import flags
from jax.sharding import Mesh

from rlvr.mesh import MeshConfig, make_mesh

_FSDP = flags.DEFINE_integer("fsdp", 1, "Devices over which the width of the parameters is split.", lower_bound=1)
_EXPERT = flags.DEFINE_integer("expert", 1, "Devices over which the experts are split.", lower_bound=1)
_TENSOR = flags.DEFINE_integer("tensor", 1, "Devices over which heads and hidden widths are split.", lower_bound=1)


def mesh() -> Mesh:
    """Returns the mesh; raises ConfigError where the flags do not multiply to the number of devices."""
    return make_mesh(MeshConfig(fsdp=_FSDP.value, expert=_EXPERT.value, tensor=_TENSOR.value))
