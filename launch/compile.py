"""Compiles a config's programs for a TPU topology that is not here: says whether it fits, and how fast it would be.

    python -m launch.compile --config=configs/pods/llama3_8b_v5e.py --topology=v5e:8x8 [--layers=1,2]

Nothing is run and no weights are needed: the prefill, the decode and the update are compiled with shapes alone, by the
TPU's own compiler (`bash scripts/setup.sh tpu`). Seconds are the compiler's estimated cycles, loops times their trips,
or the time of the exchanges where that is longer, and of moving what rests in the host's memory (15 GB/s a chip each
way is assumed); beside them stands the plain roofline. All sequences count at their longest. Layers are unrolled, so a
deep policy compiles for long (48 layers of a mixture: ten minutes on two cores, 10 GB): --layers=A,B compiles it A and
B layers deep and continues the line, which tells the time of a step, but not its memory: what the compiler does about
that depends on how full it is. --programs compiles some only. The last line is JSON; the exit status is 1 if it does
not fit.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch import cli
from launch.predict import estimate, programs
from launch.predict.chips import chip_of
from launch.predict.workload import make_workload
from rlvr import errors
from rlvr.checks import resolve
from rlvr.config import ExperimentConfig
from rlvr.mesh import make_mesh
from rlvr.parts import check_mesh

PROGRAMS = ("prefill", "decode", "accumulate", "apply")

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chips, for example v5p:4x4x4.", required=True)
_LAYERS = flags.DEFINE_list("layers", [], "Two depths to compile at instead of the whole.")
_PROGRAMS = flags.DEFINE_list("programs", [], f"Which to compile, of {', '.join(PROGRAMS)}; all if not given.")
_HLO = flags.DEFINE_string("hlo", "", "Folder for the programs' HLO text.")
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> int:
    """Compiles, prints, and says whether it fits."""
    cli.refuse_arguments(argv)
    config, chip = read_config(), chip_of(_TOPOLOGY.value)
    for name in _PROGRAMS.value:
        errors.check_choice("--programs", name, PROGRAMS)
    depths = programs.read_depths(_LAYERS.value, config.policy.layers)
    devices = programs.topology_devices(_TOPOLOGY.value)
    mesh = make_mesh(config.mesh, devices)
    check_mesh(config.policy, mesh)
    workload = make_workload(config, mesh)
    state = programs.state_bytes(config, mesh)
    head = {"config": config.name, "topology": _TOPOLOGY.value, "chips": len(devices), "layers": depths or "all"}
    print(" ".join(f"{name}={value}" for name, value in head.items()), flush=True)
    try:
        compiled = compile_at(config, depths)
    except programs.OutOfMemory as error:
        result = {
            "fits": False,
            "does_not_fit": error.program,
            "peak_gb": error.needed / 1e9,
            "hbm_gb": error.there / 1e9,
            "optimizer_gb": state.optimizer / 1e9,
        }
        stand_in = result | {"programs": {error.program: {"peak_gb": error.needed}}}
        print(f"does not fit: {error}\n  " + "\n  ".join(estimate.advise(stand_in, workload)))
        print(json.dumps(cli.shorten(head | result)))
        return 1
    result = estimate.summarise(compiled, workload, chip, len(devices), state)
    print_result(result, workload)
    if depths:
        print(f"  memory is continued from depths {depths[0]} and {depths[1]}: compile without --layers before renting")
    print(json.dumps(cli.shorten(head | result)))
    return 0 if result["fits"] else 1


def read_config() -> ExperimentConfig:
    """Returns the config; where its checkpoint is not here, the shape that the config itself gives."""
    config: ExperimentConfig = _CONFIG.value
    if config.checkpoint and not Path(config.checkpoint).exists():
        print(f"{config.checkpoint} is not here: the shape is that of config.policy", flush=True)
        config = copy.deepcopy(config)
        config.checkpoint = ""
    return resolve(config)


def compile_at(config: ExperimentConfig, depths: tuple[int, int] | None) -> dict[str, programs.Compiled]:
    """Compiles the programs whole, or at two depths and continues the line."""
    seen = []
    for depth in depths or (config.policy.layers,):
        policy = programs.shorten_policy(config.policy, depth)
        at = dataclasses.replace(config, policy=policy)

        def say(text: str, depth: int = depth) -> None:
            print(f"{depth} layers: {text}", flush=True)

        compiled, _ = programs.compile_config(at, _TOPOLOGY.value, tuple(_PROGRAMS.value), say)
        if _HLO.value:
            folder = Path(_HLO.value)
            folder.mkdir(parents=True, exist_ok=True)
            for name, program in compiled.items():
                (folder / f"{name}_{depth}.hlo").write_text(program.text)
        seen.append(compiled)
    if depths is None:
        return seen[0]
    near, far = seen
    return {name: programs.extrapolate(near[name], far[name], depths, config.policy.layers) for name in far}


def print_result(result: dict[str, Any], workload: Any) -> None:
    """Prints the table and the verdict."""
    print(
        f"a chip: parameters {result['parameters_gb']:.2f} GB, optimizer {result['optimizer_gb']:.2f} GB in HBM, "
        f"{result['host_gb']:.2f} GB in the host's memory"
    )
    print(
        f"{'program':12}{'compile s':>10}{'temp GB':>9}{'peak GB':>9}{'TFLOP':>9}{'compiler s':>12}{'compute s':>11}"
        f"{'HBM s':>9}{'links s':>9}{'host s':>9}"
    )
    for name, p in result["programs"].items():
        s = p["seconds"]
        print(
            f"{name:12}{p['compile_s']:10.0f}{p['temporary_gb']:9.2f}{p['peak_gb']:9.2f}{p['tflops']:9.2f}"
            f"{s['compiler']:12.4f}{s['compute']:11.4f}{s['hbm']:9.4f}{s['links']:9.4f}{s['host']:9.4f}"
        )
        moved = ", ".join(f"{kind} {size:.2f} GB" for kind, size in sorted(p["collectives_gb"].items()))
        where = sorted(p["where"].items(), key=lambda item: -item[1])
        print(f"{'':12}{moved or 'no exchanges'}; cycles in " + ", ".join(f"{k} {v:.4f} s" for k, v in where))
        for path in p["loops_counted_once"]:
            print(f"{'':12}a loop of unknown length was counted once: {path}")
    if "update_s" in result:
        print(
            f"update: {workload.update_tokens} tokens in {workload.micro_batches} micro-batches, "
            f"{result['update_s']:.2f} s, MFU {result['update_mfu']:.1%}, {result['update_tokens_per_s']:.0f} tokens/s"
        )
    if "rollout_s" in result:
        print(
            f"rollout: {workload.sequences} completions of {workload.completion}, {result['rollout_s']:.2f} s, "
            f"{result['rollout_tokens_per_s']:.0f} tokens/s"
        )
    verdict = "fits" if result["fits"] else "does not fit"
    print(
        f"{verdict}: peak {result['peak_gb']:.1f} GB of {result['hbm_gb']:.1f} GB, {estimate.RESERVE:.0%} to stay free"
    )
    for line in estimate.advise(result, workload):
        print(f"  {line}")


if __name__ == "__main__":
    cli.run(main)
