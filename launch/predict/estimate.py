"""From compiled programs to what a user must know: memory, seconds, utilisation, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.predict.chips import HOST_RATE, Chip
from launch.predict.programs import Compiled, StateBytes
from launch.predict.workload import Workload

# Share of HBM that must stay free: the runtime's own buffers, and fragments.
RESERVE = 0.05
# Share of its host's memory that a chip's moments may take: a checkpoint copies them before it writes.
HOST_SHARE = 0.5


def program_times(program: Compiled, chip: Chip) -> dict[str, float]:
    """Returns seconds of one run of a program.

    `compiler` is the estimated cycles, and what has no estimate: gathers at the full rate of HBM, grouped products at
    peak, attention at the share of it that its schedules reach, and its reading of the cache at full rate; `compute`,
    `hbm` and `links` are the roofline: operations at peak, bytes of products and bytes that arrive over all links at
    full rate. `host` is the moving to and from the host's memory, as if nothing ran beside it. `step` takes exchanges
    as hidden behind the rest, or the rest behind them: the larger of the two, and `host`.
    """
    compiler = program.cycles / chip.clock + program.kernel_flops / chip.flops
    compiler += program.attention_flops / (chip.flops * chip.attention) + program.attention_bytes / chip.hbm_rate
    compiler += program.gather_bytes / chip.hbm_rate
    links, host = sum(program.collectives.values()) / chip.link_rate, program.moved / HOST_RATE
    return {
        "compiler": compiler,
        "compute": program.flops / chip.flops,
        "hbm": (program.hbm_bytes + program.attention_bytes) / chip.hbm_rate,
        "links": links,
        "host": host,
        "step": max(compiler, links) + host,
    }


def memory(programs: Mapping[str, Compiled], state: StateBytes, reference: bool) -> dict[str, float]:
    """Returns the bytes of HBM in use a chip while each program runs, what stays there beside it included.

    The parameters and what of the optimizer's state rests in HBM are there always. The sampling programs get a copy of
    the parameters of their own type and layout as an argument; the update's have the parameters, `apply` the whole
    state.

    Args:
        reference: whether the start policy is kept too.
    """
    start, both = state.params if reference else 0.0, state.params + state.optimizer
    beside = {"prefill": both, "decode": both, "accumulate": state.optimizer, "apply": 0.0}
    return {name: program.needed + beside[name] + start for name, program in programs.items()}


def summarise(
    programs: Mapping[str, Compiled],
    workload: Workload,
    chip: Chip,
    chips: int,
    state: StateBytes,
) -> dict[str, Any]:
    """Returns everything as plain values; programs that were not compiled are left out of it."""
    used = memory(programs, state, workload.config.objective.needs_reference())
    times = {name: program_times(program, chip) for name, program in programs.items()}
    result: dict[str, Any] = {
        "parameters_gb": state.params / 1e9,
        "optimizer_gb": state.optimizer / 1e9,
        "host_gb": state.host / 1e9,
        "hbm_gb": chip.hbm_bytes / 1e9,
        "peak_gb": max(used.values()) / 1e9,
        "fits": max(used.values()) <= chip.hbm_bytes * (1 - RESERVE) and state.host <= chip.host_bytes * HOST_SHARE,
        "programs": {
            name: {
                "compile_s": program.seconds,
                "temporary_gb": program.temporary / 1e9,
                "peak_gb": used[name] / 1e9,
                "moved_gb": program.moved / 1e9,
                "tflops": program.flops / 1e12,
                "seconds": times[name],
                "collectives_gb": {kind: size / 1e9 for kind, size in program.collectives.items()},
                "where": _places(program, chip),
                "loops_counted_once": list(program.unknown),
            }
            for name, program in programs.items()
        },
    }
    if {"accumulate", "apply"} <= programs.keys():
        w = workload
        update = (
            w.micro_batches * times["accumulate"]["step"] + w.config.update.optimizer_steps * times["apply"]["step"]
        )
        result["update_s"] = update
        result["update_mfu"] = w.update_flops() / (chips * chip.flops * update)
        result["update_tokens_per_s"] = w.update_tokens / update
    if {"prefill", "decode"} <= programs.keys():
        rollout = workload.dispatches * times["decode"]["step"] + workload.prefills * times["prefill"]["step"]
        result["rollout_s"] = rollout
        result["rollout_tokens_per_s"] = workload.sequences * workload.completion / rollout
    if "update_s" in result and "rollout_s" in result:
        result["step_s"] = result["update_s"] + result["rollout_s"]
    return result


def _places(program: Compiled, chip: Chip) -> dict[str, float]:
    """Returns the seconds of the parts of a program, kernels apart."""
    kernels = {
        "grouped products": program.kernel_flops / chip.flops,
        "attention's kernels": program.attention_flops / (chip.flops * chip.attention)
        + program.attention_bytes / chip.hbm_rate,
    }
    kernels["gathers"] = program.gather_bytes / chip.hbm_rate
    estimated = {place: cycles / chip.clock for place, cycles in program.places.items()}
    return {place: seconds for place, seconds in (estimated | kernels).items() if seconds}


def advise(result: Mapping[str, Any], workload: Workload) -> list[str]:
    """Returns what to change so that it fits, the likeliest first; nothing where it does."""
    if result["fits"]:
        return []
    config = workload.config
    if result["peak_gb"] <= result["hbm_gb"] * (1 - RESERVE):
        return ["update.moments=device, or more chips: the host's memory does not hold the moments and a copy to save"]
    worst = max(result["programs"], key=lambda name: result["programs"][name]["peak_gb"])
    advice = []
    if worst in ("accumulate", "apply"):
        if config.policy.remat == "none":
            advice.append("policy.remat=block: activations are computed again instead of kept")
        if workload.micro_rows > workload.shards:
            advice.append(f"update.micro_tokens={workload.shards * workload.row}: one row a shard at a time")
        advice.append("a smaller update.logprob_chunk, if the largest temporary is that of the head")
    else:
        advice.append("fewer engine.slots, or engine.cache_tokens below what all slots can need")
        if config.engine.weights == "gathered":
            advice.append("engine.weights=sharded: no second copy of the weights")
        if worst == "prefill":
            advice.append("fewer engine.prefill_rows")
    if config.update.moments == "device":
        advice.append(f"update.moments=host: {result['optimizer_gb']:.1f} GB less of HBM, for the time of moving them")
    if config.policy.dtype == "float32":
        advice.append("policy.dtype=bfloat16")
    advice.append("a larger mesh.fsdp (parameters and optimizer are split over fsdp, expert and tensor), or more chips")
    return advice
