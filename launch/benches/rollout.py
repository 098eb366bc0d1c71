"""Sampling through the engine: tokens a second, against the machine's ceilings.

    python -m launch.bench rollout --rollout_mode=fixed --rounds=3
    python -m launch.bench rollout --rollout_mode=tail --rollout_requests=256 --rollout_slots=32 --rounds=1 \\
        --rollout_tail_rows=8,16 --rollout_decode_steps=1 --rollout_prefill_rows=1
    python -m launch.bench rollout --rollout_mode=groups --rollout_requests=8 --rollout_prompt_tokens=256

fixed: `rollout_requests` prompts of `rollout_prompt_tokens`, each sampled to exactly `rollout_new_tokens`.
tail: as many prompts, each sampled to a length of its own, log-normal of mean `rollout_new_tokens` and cut at
    `rollout_longest`; `occupancy` is the share of the computed rows whose token was wanted.
groups: `rollout_requests` prompts with `rollout_samples` samples each, one new token: the time of prefill where a group
    shares its prompt, against as many different prompts of that length. The decode step and the call's own cost, which
    are in both, are measured with prompts of two tokens and taken off.

`fraction_of_gemm` counts every multiplication that sampling needs (`flops`): two operations for each parameter of the
blocks and token, prompts once each and without a head; the head for each new token; attention over the keys that a
token sees. `fraction_of_bandwidth` is, of the bytes a second that the machine reads, what reading all weights once a
new token of a row, and each row's keys and values, comes to: the ceiling of decoding in small batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from launch.benches import flops
from launch.benches.measure import DTYPE, ROUNDS, gemm, measure, stream
from launch.benches.subject import SHAPE, policy_config, random_params
from launch.benches.workload import make_prompts, peak_gb, tail_lengths
from rlvr import errors
from rlvr.mesh import MeshConfig, make_mesh
from rlvr.policy.config import PolicyConfig
from rlvr.policy.transformer import Policy
from rlvr.rollout.engine import Engine, EngineConfig
from rlvr.types import Completion, Request

MODE = flags.DEFINE_string("rollout_mode", "fixed", "rollout: fixed, tail or groups.")
SLOTS = flags.DEFINE_integer("rollout_slots", 0, "rollout: S; 0 for as many as there are requests.", lower_bound=0)
REQUESTS = flags.DEFINE_integer("rollout_requests", 32, "rollout: prompts.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("rollout_samples", 16, "rollout, groups: samples a prompt.", lower_bound=2)
PROMPT = flags.DEFINE_integer("rollout_prompt_tokens", 64, "rollout: tokens of a prompt.", lower_bound=3)
NEW = flags.DEFINE_integer("rollout_new_tokens", 64, "rollout: tokens of a completion; tail: mean.", lower_bound=1)
LONGEST = flags.DEFINE_integer("rollout_longest", 512, "rollout, tail: longest completion.", lower_bound=1)
TAIL_ROWS = flags.DEFINE_list("rollout_tail_rows", [], "rollout: smaller numbers of rows; see EngineConfig.")
DECODE_STEPS = flags.DEFINE_integer("rollout_decode_steps", 8, "rollout: tokens a dispatch.", lower_bound=1)
PAGE_TOKENS = flags.DEFINE_integer("rollout_page_tokens", 64, "rollout: tokens of a page.", lower_bound=1)
CACHE_TOKENS = flags.DEFINE_integer("rollout_cache_tokens", 0, "rollout: see EngineConfig.", lower_bound=0)
PREFILL_ROWS = flags.DEFINE_integer("rollout_prefill_rows", 8, "rollout: prompts prefilled together.", lower_bound=1)


SHORT = 2  # tokens of the prompts that take nearly no prefill, in a bucket of their own


def bench_rollout() -> dict[str, Any]:
    """Measures the mode that is named."""
    errors.check_choice("rollout_mode", MODE.value, MODES)
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        policy = Policy(policy_config())
        params = random_params(policy, mesh)

        def make_engine(requests: int, new_tokens: int) -> tuple[Engine, Generate]:
            config = EngineConfig(
                slots=SLOTS.value or requests,
                max_prompt_tokens=PROMPT.value,
                max_new_tokens=new_tokens,
                prefill_rows=PREFILL_ROWS.value,
                prompt_buckets=(SHORT,) if MODE.value == "groups" else (),
                decode_steps=DECODE_STEPS.value,
                tail_rows=tuple(map(int, TAIL_ROWS.value)),
                page_tokens=PAGE_TOKENS.value,
                cache_tokens=CACHE_TOKENS.value,
            )
            # An id that cannot be drawn: nothing stops early.
            engine = Engine(policy, config, (policy.config.vocab_size,), mesh)
            return engine, lambda requests: engine.generate(params, requests, jax.random.key(0), temperature=1.0)

        result = MODES[MODE.value](policy.config, make_engine)
    common = {"bench": "rollout", "mode": MODE.value, "shape": SHAPE.value, "dtype": DTYPE.value}
    return common | {"platform": jax.default_backend(), **result, "peak_gb": round(peak_gb(), 3)}


Generate = Callable[[list[Request]], list[Completion]]
MakeEngine = Callable[[int, int], tuple[Engine, Generate]]  # of so many requests, of so many tokens at most


def bench_fixed(config: PolicyConfig, make_engine: MakeEngine) -> dict[str, Any]:
    """Completions of one length."""
    rows, prompt, new = REQUESTS.value, PROMPT.value, NEW.value
    _, generate = make_engine(rows, new)
    requests = make_requests(make_prompts(rows, prompt, config.vocab_size), 1)

    def run() -> None:
        counts = {len(completion.tokens) for completion in generate(requests)}
        assert counts == {new}, f"completions of {counts} tokens"

    product, operations = gemm(jax.numpy.dtype(DTYPE.value))
    reading, read_bytes = stream()
    seconds = measure({"rollout": run, "gemm": product, "stream": reading}, ROUNDS.value)
    took = float(np.median(seconds["rollout"]))
    ceiling, bandwidth = operations / np.median(seconds["gemm"]), read_bytes / np.median(seconds["stream"])
    needed = rows * (flops.sequence_flops(config, prompt, new) + flops.prompt_flops(config, prompt))
    slots = SLOTS.value or rows
    moved = flops.decode_bytes(config, prompt, new, slots) * rows / slots
    print(f"{'rows':>6}{'prompt':>8}{'new':>6}{'s':>10}{'tokens/s':>12}{'of GEMM':>10}{'of bandwidth':>15}")
    shares = needed / took / ceiling, moved / took / bandwidth
    print(f"{rows:6}{prompt:8}{new:6}{took:10.3f}{rows * new / took:12.1f}{shares[0]:10.3f}{shares[1]:15.3f}")
    return {
        "tokens_per_s": rows * new / took,
        "seconds": seconds["rollout"].tolist(),
        "rows": rows,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "gemm_gflops": ceiling / 1e9,
        "fraction_of_gemm": shares[0],
        "bandwidth_gb_per_s": bandwidth / 1e9,
        "fraction_of_bandwidth": shares[1],
    }


def bench_tail(config: PolicyConfig, make_engine: MakeEngine) -> dict[str, Any]:
    """Completions of very different lengths, through fewer slots than there are."""
    rows, prompt = REQUESTS.value, PROMPT.value
    lengths = tail_lengths(rows, NEW.value, LONGEST.value)
    engine, generate = make_engine(rows, LONGEST.value)
    requests = make_requests(make_prompts(rows, prompt, config.vocab_size), 1)
    requests = [dataclasses.replace(r, max_tokens=limit) for r, limit in zip(requests, lengths, strict=True)]

    def run() -> None:
        counts = [len(completion.tokens) for completion in generate(requests)]
        assert counts == lengths, "a completion is not as long as it was to be"

    product, operations = gemm(jax.numpy.dtype(DTYPE.value))
    seconds = measure({"rollout": run, "gemm": product}, ROUNDS.value)
    took, stats = float(np.median(seconds["rollout"])), engine.stats
    ceiling = operations / float(np.median(seconds["gemm"]))
    needed = rows * flops.prompt_flops(config, prompt)
    needed += sum(flops.sequence_flops(config, prompt, length) for length in lengths)
    held = stats.most_pages * stats.page_bytes
    share, per_token, rate = needed / took / ceiling, held / stats.most_tokens, sum(lengths) / took
    print(f"{rows} completions of {sum(lengths)} tokens through {engine.config.slots} slots")
    print(f"{'s':>10}{'tokens/s':>12}{'occupancy':>12}{'of GEMM':>10}{'bytes/token':>14}")
    print(f"{took:10.3f}{rate:12.1f}{stats.occupancy:12.3f}{share:10.3f}{per_token:14.0f}")
    return {
        "tokens_per_s": rate,
        "seconds": seconds["rollout"].tolist(),
        "rows": rows,
        "slots": engine.config.slots,
        "rows_that_decode": list(engine.tiers or ()),
        "wanted_tokens": sum(lengths),
        "occupancy": stats.occupancy,
        "dispatches": stats.dispatches,
        "cache_bytes_per_token": per_token,
        "token_bytes": stats.page_bytes / engine.config.page_tokens,
        "cache_mb_held": held / 1e6,
        "cache_mb_of_slots": engine.config.slots * engine.config.longest * stats.page_bytes / PAGE_TOKENS.value / 1e6,
        "gemm_gflops": ceiling / 1e9,
        "fraction_of_gemm": share,
    }


def bench_groups(config: PolicyConfig, make_engine: MakeEngine) -> dict[str, Any]:
    """Prefill of prompts that groups share, against prefill of every sample's prompt."""
    prompts, samples, length = REQUESTS.value, SAMPLES.value, PROMPT.value
    rows = prompts * samples
    _, generate = make_engine(rows, 1)
    shared = make_requests(make_prompts(prompts, length, config.vocab_size), samples)
    repeated = make_requests(make_prompts(rows, length, config.vocab_size), 1)
    short = make_requests(make_prompts(1, SHORT, config.vocab_size), rows)
    product, operations = gemm(jax.numpy.dtype(DTYPE.value))
    seconds = measure(
        {
            "shared": lambda: generate(shared) and None,
            "repeated": lambda: generate(repeated) and None,
            "neither": lambda: generate(short) and None,
            "gemm": product,
        },
        ROUNDS.value,
    )
    took = {name: float(np.median(values)) for name, values in seconds.items()}
    prefill = {name: float(np.median(seconds[name] - seconds["neither"])) for name in ("shared", "repeated")}
    ceiling = operations / took["gemm"]
    share = {
        "shared": prompts * flops.prompt_flops(config, length) / prefill["shared"] / ceiling,
        "repeated": rows * flops.prompt_flops(config, length) / prefill["repeated"] / ceiling,
    }
    print(f"{prompts} prompts of {length} tokens x {samples} samples")
    print(f"{'prompts':12}{'call s':>10}{'prefill s':>12}{'of GEMM':>10}")
    for name, value in prefill.items():
        print(f"{name:12}{took[name]:10.3f}{value:12.3f}{share[name]:10.3f}")
    return {
        "prompts": prompts,
        "samples": samples,
        "prompt_tokens": length,
        "prefill_s": prefill["shared"],
        "repeated_prefill_s": prefill["repeated"],
        "prefill_ratio": prefill["repeated"] / prefill["shared"],
        "call_s": took["shared"],
        "repeated_call_s": took["repeated"],
        "gemm_gflops": ceiling / 1e9,
        "fraction_of_gemm": share["shared"],
    }


def make_requests(prompts: list[tuple[int, ...]], samples: int) -> list[Request]:
    """Returns `samples` requests of each prompt, prompt by prompt."""
    return [Request(p * samples + s, p, s, prompt) for p, prompt in enumerate(prompts) for s in range(samples)]


MODES: dict[str, Callable[[PolicyConfig, MakeEngine], dict[str, Any]]] = {
    "fixed": bench_fixed,
    "tail": bench_tail,
    "groups": bench_groups,
}
