"""Compiles the programs of a step for a TPU topology that is not here, with abstract weights."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from launch.predict import hlo
from launch.predict.workload import Workload, make_workload
from rlvr import errors, partition
from rlvr.config import ExperimentConfig
from rlvr.learner.batch import Row
from rlvr.learner.learner import Learner
from rlvr.learner.trainable import all_parameters
from rlvr.mesh import make_mesh
from rlvr.policy.config import PolicyConfig
from rlvr.policy.transformer import Policy
from rlvr.rollout.engine import Engine


class Compiled(NamedTuple):
    """One program on one chip. All numbers are floats, so that those of two depths can be extrapolated.

    Attributes:
        seconds: to compile it.
        arguments, outputs, temporary, shared: bytes; `shared` are outputs in the place of arguments.
        needed: bytes of HBM in use while it runs, what other programs keep there left out.
        moved: bytes between the chip and its host's memory.
        cycles, flops, kernel_flops, attention_flops, attention_bytes, hbm_bytes, gather_bytes: see
            `launch.predict.hlo.Program`.
        collectives: bytes that arrive at a chip, by kind.
        places: cycles by part.
        unknown: loops counted once.
        text: the HLO.
    """

    seconds: float
    arguments: float
    outputs: float
    temporary: float
    shared: float
    needed: float
    moved: float
    cycles: float
    flops: float
    kernel_flops: float
    attention_flops: float
    attention_bytes: float
    hbm_bytes: float
    gather_bytes: float
    collectives: dict[str, float]
    places: dict[str, float]
    unknown: tuple[str, ...]
    text: str


def topology_devices(topology: str) -> Any:
    """Returns the devices of a topology like "v5p:4x4x4".

    Raises:
        ConfigError: libtpu is not installed, or does not know the topology.
    """
    # The compiler asks the cloud's metadata server which machine it is on, unless told not to.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # It holds no chip: several may compile on one machine.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        import libtpu  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise errors.ConfigError(
            "launch.compile needs libtpu, the TPU compiler: bash scripts/setup.sh tpu (requirements/tpu.txt)"
        ) from error
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as error:  # whatever the plugin raises
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise errors.ConfigError(f"--topology={topology!r} is not known to libtpu: {first[:300]}") from error


def shorten_policy(policy: PolicyConfig, layers: int) -> PolicyConfig:
    """Returns the policy with its first `layers` layers."""
    kept: dict[str, Any] = {
        name: tuple(layer for layer in getattr(policy, name) if layer < layers)
        for name in ("moe_layers", "window_layers", "nope_layers")
    }
    return dataclasses.replace(policy, layers=layers, **kept)


def read_depths(given: Sequence[str], layers: int) -> tuple[int, int] | None:
    """Returns the two depths of --layers, None for the whole policy.

    Raises:
        ConfigError: they are not two numbers that rise, from 1 to `layers`.
    """
    if not given:
        return None
    if len(given) != 2 or not all(depth.isdigit() for depth in given):
        raise errors.ConfigError(f"--layers={','.join(given)} must be two numbers (like 1,2)")
    near, far = (int(depth) for depth in given)
    if not 1 <= near < far <= layers:
        raise errors.ConfigError(f"--layers={near},{far} must rise, from 1 to {layers}")
    return near, far


def lower_programs(config: ExperimentConfig, mesh: Mesh) -> dict[str, list[tuple[Any, int]]]:
    """Returns the lowered programs of a step: "prefill", "decode", "accumulate" and "apply".

    The last is several, one after another; each stands with how often it runs.
    """
    policy, c = Policy(config.policy), config
    learner = Learner(
        policy,
        c.objective,
        c.optimizer,
        c.update,
        steps=max(c.steps * c.update.optimizer_steps, 1),
        max_length=c.engine.max_prompt_tokens + c.engine.max_new_tokens,
        max_columns=c.engine.max_new_tokens,
        temperature=c.rollout.temperature,
        mesh=mesh,
        trainable=all_parameters(policy),
    )
    state = learner.abstract()
    mixtures = len(c.policy.moe_layers)
    # Every row of a mixture policy brings the experts chosen at sampling, replayed or not.
    choices = np.zeros((1, mixtures, c.policy.experts_per_token), np.int16) if mixtures else None
    row = Row((0,), np.zeros(1, np.int32), np.zeros(1, np.float32), 0.0, 0, choices)
    length = make_workload(c, mesh).row
    with jax.set_mesh(mesh):
        # The engine is made here too: in which form it keeps pages depends on the chips.
        engine = Engine(policy, c.engine, (0,), mesh)
        sampling = {name: [(lowered, 1)] for name, lowered in engine.lower(state.params).items()}
        return sampling | learner.lower(length, state, row)


class StateBytes(NamedTuple):
    """Bytes a chip of the training state: of the parameters, and of the optimizer's state in HBM and on the host."""

    params: float
    optimizer: float
    host: float


def state_bytes(config: ExperimentConfig, mesh: Mesh) -> StateBytes:
    """Returns what the training state takes."""
    policy = Policy(config.policy)
    total = 0.0
    shapes = policy.abstract_params()
    spread = partition.shardings(mesh, policy.logical_axes())
    for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(spread), strict=True):
        local = sharding.shard_shape(leaf.shape)
        total += float(leaf.dtype.itemsize * math.prod(local))
    moments = 2.0 * total  # AdamW: two moments, each like the parameters
    on_host = config.update.moments == "host"
    return StateBytes(total, 0.0 if on_host else moments, moments if on_host else 0.0)


def compile_program(name: str, lowered: Any, workload: Workload) -> Compiled:
    """Compiles one program.

    Raises:
        OutOfMemory: the compiler itself finds that it does not fit.
    """
    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except Exception as error:
        said = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", str(error)) or re.search(
            r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", str(error)
        )
        if said is None:
            raise
        scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
        raise OutOfMemory(name, float(said[1]) * scale[said[2]], float(said[3]) * scale[said[4]]) from error
    seconds = time.monotonic() - began
    memory, text = compiled.memory_analysis(), compiled.as_text()
    program = hlo.analyse(text, workload.trips(name), workload.expert_share)
    sizes = [
        float(getattr(memory, f"{what}_size_in_bytes"))
        for what in ("argument", "output", "temp", "alias", "generated_code")
    ]
    arguments, outputs, temporary, shared, code = sizes
    moved = float(memory.host_argument_size_in_bytes + memory.host_output_size_in_bytes)
    return Compiled(
        seconds=seconds,
        arguments=arguments,
        outputs=outputs,
        temporary=temporary,
        shared=shared,
        needed=arguments + outputs + temporary - shared + code,
        moved=moved,
        cycles=program.cycles,
        flops=program.flops,
        kernel_flops=program.kernel_flops,
        attention_flops=program.attention_flops,
        attention_bytes=program.attention_bytes,
        hbm_bytes=program.hbm_bytes,
        gather_bytes=program.gather_bytes,
        collectives=program.collective_bytes(),
        places=dict(program.by_place),
        unknown=tuple(sorted(program.unknown)),
        text=text,
    )


class OutOfMemory(RuntimeError):
    """The compiler says that a program needs more HBM than a chip has."""

    def __init__(self, program: str, needed: float, there: float):
        super().__init__(f"{program} needs {needed / 1e9:.1f} GB of {there / 1e9:.1f} GB")
        self.program, self.needed, self.there = program, needed, there


def combine_parts(parts: Sequence[tuple[Compiled, int]], state: StateBytes) -> Compiled:
    """Returns the optimizer's step of its parts' programs, each with how often it runs.

    While one runs, the parameters, their gradients and the optimizer's state are there whole.
    """
    there = 2 * state.params + state.optimizer

    def total(name: str) -> float:
        return sum(getattr(part, name) * times for part, times in parts)

    def merge(name: str) -> dict[str, float]:
        keys = {key for part, _ in parts for key in getattr(part, name)}
        return {key: sum(getattr(part, name).get(key, 0.0) * times for part, times in parts) for key in sorted(keys)}

    sums = "moved cycles flops kernel_flops attention_flops attention_bytes hbm_bytes gather_bytes".split()
    beside = max(part.needed - part.arguments for part, _ in parts)
    return Compiled(
        seconds=sum(part.seconds for part, _ in parts),
        arguments=there,
        outputs=total("outputs"),
        temporary=max(part.temporary for part, _ in parts),
        shared=total("shared"),
        needed=there + beside,
        **{name: total(name) for name in sums},
        collectives=merge("collectives"),
        places=merge("places"),
        unknown=tuple(sorted({path for part, _ in parts for path in part.unknown})),
        text="\n".join(part.text for part, _ in parts),
    )


def extrapolate(near: Compiled, far: Compiled, layers: tuple[int, int], wanted: int) -> Compiled:
    """Returns a program at `wanted` layers from the same at two depths: every number is a line in the depth."""
    step = (wanted - layers[1]) / (layers[1] - layers[0])

    def line(a: Any, b: Any) -> Any:
        if isinstance(b, dict):
            return {name: line(a.get(name, 0.0), b[name]) for name in b}
        return max(b + (b - a) * step, 0.0) if isinstance(b, float) else b

    return Compiled(*(line(a, b) for a, b in zip(near, far, strict=True)))._replace(seconds=near.seconds + far.seconds)


def compile_config(
    config: ExperimentConfig, topology: str, only: tuple[str, ...], say: Any
) -> tuple[dict[str, Compiled], Workload]:
    """Compiles the programs of a config for a topology; returns them with the step's workload."""
    mesh = make_mesh(config.mesh, topology_devices(topology))
    workload = make_workload(config, mesh)
    out = {}
    for name, lowered in lower_programs(config, mesh).items():
        if not only or name in only:
            parts = [(compile_program(name, part, workload), times) for part, times in lowered]
            out[name] = combine_parts(parts, state_bytes(config, mesh)) if name == "apply" else parts[0][0]
            say(f"{name}: compiled in {out[name].seconds:.0f} s")
    return out, workload
