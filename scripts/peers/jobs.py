"""The command line that every peer's script has, and the last line it prints.

A script measures one job a process and prints JSON as its last line:

rollout: `rows` sequences of `prompt_tokens` + `new_tokens`, one static batch, no early stop, temperature 1 over the
    whole vocabulary. tokens_per_s counts new tokens; prefill is in the time. first_s is the first call, compilation
    included.
tail: `completions` sequences whose lengths are log-normal (`launch.benches.workload.tail_lengths`), in static batches
    of `rows` that run until the longest of the batch ends. tokens_per_s counts wanted tokens. `batches` (0: all)
    measures the first few only.
step: GRPO steps of `prompts` x `samples` completions of exactly `new_tokens` tokens, no KL term, one update a step,
    AdamW, a reward that is a hash of the text. first_step_s has the compilation; step_s is the mean of the others.

peak_gb is the process's largest resident memory. Weights are random.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch.benches import workload

Job = Callable[[argparse.Namespace, workload.Shape], dict[str, Any]]


def parse(description: str, jobs: Mapping[str, Job]) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=sorted(jobs))
    parser.add_argument("--shape", choices=sorted(workload.SHAPES), default="smollm2_135m")
    parser.add_argument("--rows", type=int, default=32, help="rollout, tail: sequences of a batch")
    parser.add_argument("--prompt_tokens", type=int, default=64)
    parser.add_argument("--new_tokens", type=int, default=64, help="rollout, step")
    parser.add_argument("--repeats", type=int, default=2, help="rollout: timed calls after the first")
    parser.add_argument("--completions", type=int, default=256, help="tail")
    parser.add_argument("--mean", type=int, default=64, help="tail: mean length")
    parser.add_argument("--longest", type=int, default=512, help="tail: longest length")
    parser.add_argument("--batches", type=int, default=0, help="tail: batches to run, 0 for all")
    parser.add_argument("--prompts", type=int, default=8, help="step")
    parser.add_argument("--samples", type=int, default=8, help="step: samples a prompt")
    parser.add_argument("--steps", type=int, default=3, help="step: the first of them compiles")
    parser.add_argument("--micro_rows", type=int, default=8, help="step: rows of a forward and backward pass")
    return parser.parse_args()


def main(peer: str, description: str, jobs: Mapping[str, Job]) -> None:
    """Runs the job that is named and prints its result."""
    arguments = parse(description, jobs)
    result = jobs[arguments.job](arguments, workload.SHAPES[arguments.shape])
    print(json.dumps({"peer": peer, "job": arguments.job, **result, "peak_gb": round(workload.peak_gb(), 3)}))


def tail_batches(arguments: argparse.Namespace) -> list[list[int]]:
    """Returns the wanted lengths of each static batch that is to be measured."""
    return all_batches(arguments)[: arguments.batches or None]


def all_batches(arguments: argparse.Namespace) -> list[list[int]]:
    """Returns the wanted lengths of each static batch."""
    lengths = workload.tail_lengths(arguments.completions, arguments.mean, arguments.longest)
    return [list(batch) for batch in workload.in_batches(lengths, arguments.rows)]


def occupancy(batches: list[list[int]]) -> float:
    """Returns the share of the decoded tokens that were wanted."""
    return sum(map(sum, batches)) / sum(len(batch) * max(batch) for batch in batches)


def tail_result(arguments: argparse.Namespace, seconds: float, first_s: float) -> dict[str, Any]:
    """Returns the result of a long-tail job: what was wanted, and what the static batches decoded for it."""
    batches = tail_batches(arguments)
    wanted = sum(map(sum, batches))
    return {
        "tokens_per_s": wanted / seconds,
        "occupancy": occupancy(batches),
        "occupancy_of_all": occupancy(all_batches(arguments)),
        "wanted_tokens": wanted,
        "batches": len(batches),
        "seconds": seconds,
        "first_s": first_s,
    }


def step_result(times: list[float]) -> dict[str, Any]:
    """Returns the result of a job of GRPO steps, given when the first began and when each was done."""
    seconds = [end - start for start, end in itertools.pairwise(times)]
    return {"step_s": sum(seconds[1:]) / (len(seconds) - 1), "first_step_s": seconds[0], "steps_s": seconds}
