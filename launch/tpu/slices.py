"""A slice of Cloud TPU chips: what is asked for, and the gcloud commands that make, see and remove it.

All commands are pure functions, so that a dry run prints exactly what a real one executes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from rlvr import errors

Command = list[str]


class Generation(NamedTuple):
    """How Cloud TPU names a generation of chips."""

    prefix: str  # of the accelerator type
    cores: int  # that the number in the accelerator type counts, a chip
    dimensions: int  # of a topology
    runtime: str  # software version of its VMs


# https://cloud.google.com/tpu/docs/runtimes, https://cloud.google.com/tpu/docs/supported-tpu-configurations
GENERATIONS: Mapping[str, Generation] = {
    "v4": Generation("v4", 2, 3, "tpu-ubuntu2204-base"),
    "v5e": Generation("v5litepod", 1, 2, "v2-alpha-tpuv5-lite"),
    "v5p": Generation("v5p", 2, 3, "v2-alpha-tpuv5"),
    "v6e": Generation("v6e", 1, 2, "v2-alpha-tpuv6e"),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice, held by a queued resource of the same name.

    Attributes:
        name: of the queued resource and its node.
        zone: where.
        accelerator_type: for example "v5p-128" (128 cores: 64 chips) or "v6e-64".
        runtime: software version of the VMs.
        project: "" is gcloud's own setting.
        spot: cheaper, and taken away when others need it.
        reserved: from the project's reservation.
        service_account: of the VMs, "" is the project's default.
        valid_until: how long the request may wait in the queue, for example "6h"; "" for ever.
    """

    name: str
    zone: str
    accelerator_type: str
    runtime: str
    project: str = ""
    spot: bool = False
    reserved: bool = False
    service_account: str = ""
    valid_until: str = ""

    def where(self) -> Command:
        """Returns the flags that say where it is."""
        return [f"--zone={self.zone}"] + ([f"--project={self.project}"] if self.project else [])


def check_slice(wanted: Slice) -> None:
    """Raises ConfigError on the first field that cannot work."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", wanted.name):
        raise errors.ConfigError(
            f"--name={wanted.name!r} must be 1 to 40 lower-case letters, digits and hyphens, and begin with a letter"
        )
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", wanted.zone):
        raise errors.ConfigError(f"--zone={wanted.zone!r} is not a zone (like us-east5-a)")
    if wanted.spot and wanted.reserved:
        raise errors.ConfigError("--spot and --reserved exclude each other")
    if wanted.valid_until and not re.fullmatch(r"\d+[smhd]", wanted.valid_until):
        raise errors.ConfigError(f"--valid_until={wanted.valid_until!r} is not a duration (like 90m, 6h, 2d)")


def read_accelerator(accelerator_type: str, topology: str) -> tuple[str, str]:
    """Returns (accelerator type, default software version) of one of two notations.

    Args:
        accelerator_type: Cloud's own, for example "v5p-128"; or "".
        topology: that of `launch.compile`, for example "v5p:4x4x4"; or "". Of several shapes with as many chips
            Cloud chooses one.

    Raises:
        ConfigError: not exactly one is given, or it is not known.
    """
    if bool(accelerator_type) == bool(topology):
        raise errors.ConfigError("give one of --accelerator_type=v5p-128 and --topology=v5p:4x4x4")
    if topology:
        name, _, shape = topology.partition(":")
        errors.check_choice("--topology", name, GENERATIONS)
        generation = GENERATIONS[name]
        sizes = shape.split("x")
        if len(sizes) != generation.dimensions or not all(re.fullmatch(r"[1-9]\d*", size) for size in sizes):
            example = "x".join(["4"] * generation.dimensions)
            raise errors.ConfigError(
                f"--topology={topology!r} is not a shape of {generation.dimensions} sizes (like {name}:{example})"
            )
        chips = math.prod(map(int, sizes))
        return f"{generation.prefix}-{chips * generation.cores}", generation.runtime
    prefix, _, number = accelerator_type.rpartition("-")
    known = {generation.prefix: generation for generation in GENERATIONS.values()}
    if prefix not in known or not re.fullmatch(r"[1-9]\d*", number):
        accepted = ", ".join(f"{prefix}-N" for prefix in known)
        raise errors.ConfigError(f"--accelerator_type={accelerator_type!r} is not known (accepted: {accepted})")
    return accelerator_type, known[prefix].runtime


def create_command(wanted: Slice) -> Command:
    """Returns the command that queues the request."""
    command = [
        "gcloud", "compute", "tpus", "queued-resources", "create", wanted.name, *wanted.where(),
        f"--node-id={wanted.name}", f"--accelerator-type={wanted.accelerator_type}",
        f"--runtime-version={wanted.runtime}", "--quiet",
    ]  # fmt: skip
    command += ["--spot"] if wanted.spot else []
    command += ["--reserved"] if wanted.reserved else []
    command += [f"--service-account={wanted.service_account}"] if wanted.service_account else []
    command += ["--scopes=cloud-platform"]  # the bucket and the secrets; what it may do there its roles say
    return command + ([f"--valid-until-duration={wanted.valid_until}"] if wanted.valid_until else [])


def request_command(wanted: Slice) -> Command:
    """Returns the command that describes the request: JSON with `state.state`."""
    return [
        "gcloud", "compute", "tpus", "queued-resources", "describe", wanted.name, *wanted.where(), "--format=json",
    ]  # fmt: skip


def node_command(wanted: Slice) -> Command:
    """Returns the command that describes the machines: JSON with `state`, `health` and `networkEndpoints`."""
    return ["gcloud", "compute", "tpus", "tpu-vm", "describe", wanted.name, *wanted.where(), "--format=json"]


def delete_command(wanted: Slice) -> Command:
    """Returns the command that removes the request together with its machines."""
    return [
        "gcloud", "compute", "tpus", "queued-resources", "delete", wanted.name, *wanted.where(), "--force", "--quiet",
    ]  # fmt: skip


def ssh_command(wanted: Slice, script: str, worker: str = "all") -> Command:
    """Returns the command that runs a line of shell on one worker or on all."""
    return [
        "gcloud", "compute", "tpus", "tpu-vm", "ssh", wanted.name, *wanted.where(), f"--worker={worker}", "--quiet",
        f"--command={script}",
    ]  # fmt: skip


def upload_command(wanted: Slice, *files: str, folder: str) -> Command:
    """Returns the command that copies local files to all workers."""
    return [
        "gcloud", "compute", "tpus", "tpu-vm", "scp", *files, f"{wanted.name}:{folder}/", *wanted.where(),
        "--worker=all", "--quiet",
    ]  # fmt: skip


def download_command(wanted: Slice, file: str, target: str, worker: int) -> Command:
    """Returns the command that copies a worker's file here."""
    return [
        "gcloud", "compute", "tpus", "tpu-vm", "scp", f"{wanted.name}:{file}", target, *wanted.where(),
        f"--worker={worker}", "--quiet",
    ]  # fmt: skip
