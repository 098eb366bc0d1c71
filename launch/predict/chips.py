"""What TPU chips can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rlvr import errors


class Chip(NamedTuple):
    """One chip, or what JAX sees as a device: half of a tpu7x.

    Attributes:
        flops: bfloat16 operations a second, at most.
        hbm_bytes: memory that programs can have.
        hbm_rate: bytes a second to and from it.
        link_rate: bytes a second that it can send to its neighbours, all links together; as many arrive.
        clock: cycles a second: `flops` over what its matrix units do in a cycle. The compiler's estimates count these.
        attention: share of `flops` that the kernels of attention reach with heads of 128, by the issue slots of their
            schedules for 8 query heads a key head and blocks of 512 (`rlvr.policy.flash`, BUILD.md). Units 256 wide
            are half filled by such products.
        host_bytes: of its host's memory, a chip's share.
    """

    flops: float
    hbm_bytes: float
    hbm_rate: float
    link_rate: float
    clock: float
    attention: float
    host_bytes: float


_MXU_128 = 2 * 128 * 128
_MXU_256 = 2 * 256 * 256

# Bytes a second between a chip and its host's memory, each way: PCIe 3.0 x16, which the slowest of them have. Google
# publishes no figure.
HOST_RATE = 15e9

# https://cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x}, read in 2026; the interconnect there is that of both directions
# for v5e and tpu7x, of one for v5p (4,800 Gb/s) and v6e (3,584 Gb/s). Memory: what the compiler says is available, in
# GiB. Hosts: 512 GiB for 8 v5e, 448 GB for 4 v5p, 1,536 GiB for 8 v6e, 960 GB for 4 tpu7x.
CHIPS: Mapping[str, Chip] = {
    "v5e": Chip(197e12, 15.75 * 2**30, 819e9, 200e9, 197e12 / (4 * _MXU_128), 0.78, 64 * 2**30),
    "v5p": Chip(459e12, 95.74 * 2**30, 2765e9, 600e9, 459e12 / (8 * _MXU_128), 0.80, 112e9),
    "v6e": Chip(918e12, 31.25 * 2**30, 1640e9, 448e9, 918e12 / (4 * _MXU_256), 0.30, 192 * 2**30),
    "tpu7x": Chip(1153.5e12, 94.75 * 2**30, 3690e9, 300e9, 1153.5e12 / (4 * _MXU_256), 0.32, 120e9),
}


def chip_of(topology: str) -> Chip:
    """Returns the chip of a topology like "v5p:4x4x4".

    Raises:
        ConfigError: the generation is not known.
    """
    name = topology.split(":")[0]
    errors.check_choice("--topology", name, CHIPS)
    return CHIPS[name]
