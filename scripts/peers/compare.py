"""Measures this project beside its peers, in turn, on a quiet machine.

    .venv/bin/python scripts/peers/compare.py                        # everything: about 20 minutes on two cores
    .venv/bin/python scripts/peers/compare.py --parts rollout --rounds 3
    .venv/bin/python scripts/peers/compare.py --parts tail --tail_batches 0
    .venv/bin/python scripts/peers/compare.py --ours step=--step_micro_tokens=1088 --ours groups=--rounds=5

Parts: rollout, tail, step (see `jobs.py` for what a peer does, `launch/benches` for ours) and groups (ours alone:
shared prompts against repeated ones). Each measurement is a process of its own; the order is turned round every round,
and a ratio is taken within a round. In `tail` the peers run only the first `tail_batches` of their static batches: the
rate at which they decode is scaled by the share of wanted tokens in all batches over that in the measured ones. A
contestant that fails is reported and left out. Prints a table a part and, as the last line, JSON; progress goes to
stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from launch.cli import shorten

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("tunix", "trl")
PARTS = ("rollout", "tail", "groups", "step")
# What is compared: the figure, and whether more of it is better.
FIGURES = {
    "rollout": {"tokens_per_s": True, "peak_gb": False},
    "tail": {"tokens_per_s": True, "peak_gb": False},
    "groups": {"prefill_ratio": True},
    "step": {"step_s": False, "first_step_s": False, "peak_gb": False},
}
SIZES: dict[str, dict[str, dict[str, int | str]]] = {
    "full": {
        "rollout": {"rows": 32, "prompt_tokens": 64, "new_tokens": 64},
        "tail": {"completions": 256, "rows": 32, "prompt_tokens": 64, "mean": 64, "longest": 512},
        "groups": {"prompts": 8, "samples": 16, "prompt_tokens": 256},
        "step": {"prompts": 8, "samples": 8, "prompt_tokens": 32, "new_tokens": 64, "steps": 3, "micro_rows": 8},
    },
    "smoke": {
        "rollout": {"shape": "tiny", "rows": 4, "prompt_tokens": 8, "new_tokens": 8},
        "tail": {"shape": "tiny", "completions": 12, "rows": 4, "prompt_tokens": 8, "mean": 8, "longest": 32},
        "groups": {"shape": "tiny", "prompts": 2, "samples": 4, "prompt_tokens": 16},
        "step": {
            "shape": "tiny", "prompts": 2, "samples": 4, "prompt_tokens": 8, "new_tokens": 8, "steps": 2,
            "micro_rows": 4,
        },
    },
}  # fmt: skip
# Our names of those sizes, where they differ from "--<bench>_<size>"; "" where we have no such thing.
OURS = {
    "rollout": {"rows": "rollout_requests"},
    "tail": {"completions": "rollout_requests", "rows": "rollout_slots", "mean": "rollout_new_tokens"},
    "groups": {"prompts": "rollout_requests"},
    "step": {"micro_rows": ""},
}
# What a user of ours would set for the part.
SETTINGS = {
    "full": {"tail": ["--rollout_tail_rows=8,16", "--rollout_decode_steps=1", "--rollout_prefill_rows=1"]},
    "smoke": {"tail": ["--rollout_tail_rows=2", "--rollout_decode_steps=1", "--rollout_prefill_rows=1"]},
}


def main() -> None:
    """Runs the parts and prints what was measured."""
    arguments = parse()
    for peer in arguments.peers:
        subprocess.run([str(ROOT / "scripts/peers/setup.sh"), peer], check=True, stdout=sys.stderr)
    result: dict[str, Any] = {}
    for part in arguments.parts:
        rounds = [run_round(arguments, part, i) for i in range(arguments.rounds)]
        result[part] = summarise(part, rounds)
        print_table(part, result[part])
    print(json.dumps(shorten({"sizes": arguments.sizes, **result})))


def parse() -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=1, help="of each part")
    parser.add_argument("--repeats", type=int, default=2, help="rollout: timed calls of a process")
    parser.add_argument("--tail_batches", type=int, default=2, help="static batches of a peer; 0 for all")
    parser.add_argument("--ours", action="append", default=[], metavar="PART=FLAGS", help="more flags of our bench")
    parser.add_argument("--sizes", choices=sorted(SIZES), default="full")
    parser.add_argument("--limit_s", type=float, default=1200, help="seconds a process may take")
    arguments = parser.parse_args()
    arguments.more = dict.fromkeys(PARTS, "")
    for entry in arguments.ours:
        part, equals, flags = entry.partition("=")
        if part not in PARTS or not equals:
            parser.error(f"--ours={entry!r}: give PART=FLAGS with PART one of {', '.join(PARTS)}")
        arguments.more[part] += f" {flags}"
    return arguments


def run_round(arguments: argparse.Namespace, part: str, index: int) -> dict[str, dict[str, Any]]:
    """Returns the results of one round, by contestant."""
    contestants = ["ours"] if part == "groups" else ["ours", *arguments.peers]
    results = {}
    for name in contestants if index % 2 == 0 else reversed(contestants):
        began = time.monotonic()
        command = own_command(arguments, part) if name == "ours" else peer_command(arguments, part, name)
        result = run(command, arguments.limit_s)
        outcome = "failed" if result is None else "done"
        print(f"{part}, round {index + 1}: {name} {outcome} in {time.monotonic() - began:.0f} s", file=sys.stderr)
        if result is not None:
            if "occupancy_of_all" in result:
                result["tokens_per_s"] *= result["occupancy_of_all"] / result["occupancy"]
            results[name] = result
    return results


def run(command: list[str], limit_s: float) -> dict[str, Any] | None:
    """Returns what the process printed as its last line; None, and its errors are shown, if it failed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit_s, check=True
        )
        return json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        print(f"error: not done within {limit_s:.0f} s: {shlex.join(command)}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"error: {shlex.join(command)}\n{error.stderr[-3000:]}", file=sys.stderr)
    return None


def own_command(arguments: argparse.Namespace, part: str) -> list[str]:
    """Returns the command of our bench."""
    bench = "step" if part == "step" else "rollout"
    flags = {} if part == "step" else {"rollout_mode": "fixed" if part == "rollout" else part}
    for name, value in SIZES[arguments.sizes][part].items():
        own = "shape" if name == "shape" else f"{bench}_{name}"
        flags[OURS[part].get(name, own)] = str(value)
    flags.pop("", None)
    flags["rounds"] = {"rollout": str(arguments.repeats), "groups": "3"}.get(part, "1")
    command = [sys.executable, "-m", "launch.bench", bench, *(f"--{name}={value}" for name, value in flags.items())]
    return command + SETTINGS[arguments.sizes].get(part, []) + shlex.split(arguments.more[part])


def peer_command(arguments: argparse.Namespace, part: str, peer: str) -> list[str]:
    """Returns the command of a peer's job."""
    flags = dict(SIZES[arguments.sizes][part])
    if part == "rollout":
        flags["repeats"] = arguments.repeats
    if part == "tail":
        flags["batches"] = arguments.tail_batches
    python = ROOT / "build/peers" / peer / "venv/bin/python"
    script = ROOT / "scripts/peers" / peer / "run.py"
    return [str(python), str(script), part, *(f"--{name}={value}" for name, value in flags.items())]


def summarise(part: str, rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Returns medians over the rounds of each contestant's figures, and of our ratio to each peer within a round."""
    names = list(dict.fromkeys(name for results in rounds for name in results))
    summary: dict[str, Any] = {}
    for name in names:
        own = [results[name] for results in rounds if name in results]
        summary[name] = {"rounds": own, **{f: median(result[f] for result in own) for f in FIGURES[part]}}
        both = [results for results in rounds if name in results and "ours" in results]
        if name != "ours" and both:
            summary[name]["ours_is_better_by"] = {
                figure: median(advantage(results["ours"][figure], results[name][figure], more) for results in both)
                for figure, more in FIGURES[part].items()
            }
    return summary


def advantage(ours: float, theirs: float, more_is_better: bool) -> float:
    """Returns by how many times ours is better."""
    return ours / theirs if more_is_better else theirs / ours


def print_table(part: str, summary: dict[str, Any]) -> None:
    """Prints a part's figures; in brackets, by how many times ours is better."""
    figures = FIGURES[part]
    print(f"\n{part:10}" + "".join(f"{figure:>24}" for figure in figures))
    for name, values in summary.items():
        better = values.get("ours_is_better_by", {})
        cells = (f"{values[f]:.4g}" + (f" ({better[f]:.2f}x)" if f in better else "") for f in figures)
        print(f"{name:10}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
