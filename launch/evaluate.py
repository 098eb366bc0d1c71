"""Evaluates a policy on a config's held-out tasks:

    python -m launch.evaluate --checkpoint=DIR --config=configs/smollm2_arithmetic.py [--output=FOLDER]

The last line is `RESULT {...}` with, per task set, n, accuracy, accuracy_lenient, the 95 % interval and mean_tokens.
With --output the folder gets result.json and samples.jsonl (every completion with its verdict).

    python -m launch.evaluate --checkpoint=DIR --config=FILE --pass_rates=rates.jsonl --samples=8

samples every training problem instead, as the rollout of the config does, and writes how often it was right, for
`data.pass_rates`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch import checkpoints, cli
from rlvr import errors
from rlvr.checks import validate, with_policy_of
from rlvr.config import ExperimentConfig
from rlvr.data.pass_rates import distinct_tasks
from rlvr.data.pipeline import make_eval_sets, make_train_stream
from rlvr.evaluation import evaluate, measure_pass_rates, summarize_pass_rates
from rlvr.mesh import make_mesh
from rlvr.metrics import describe_episode
from rlvr.parts import check_eval_tasks, check_mesh
from rlvr.policy.transformer import Params, Policy
from rlvr.rollout.collect import Collector, Episode
from rlvr.rollout.engine import Engine
from rlvr.text.tokenizer import check_stop_strings
from rlvr.types import Task
from rlvr.verifiers.pool import VerifierPool
from rlvr.workdir import write_json

_CONFIG = cli.define_config()
_OUTPUT = flags.DEFINE_string("output", "", "Folder for result.json and samples.jsonl.")
_PASS_RATES = flags.DEFINE_string("pass_rates", "", "File for how often each training problem was right.")
_SAMPLES = flags.DEFINE_integer("samples", 8, "Samples of each training problem.", lower_bound=1)
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """Evaluates every set of the config, or measures the pass rates of what it trains on."""
    cli.refuse_arguments(argv)
    config, began = _CONFIG.value, time.monotonic()
    if _SAMPLES.present and not _PASS_RATES.value:
        raise errors.ConfigError(f"--samples={_SAMPLES.value} is of --pass_rates: an evaluation samples a task once")
    files = {name: Path(_OUTPUT.value) / name for name in ("result.json", "samples.jsonl")} if _OUTPUT.value else {}
    for path in files.values():
        checkpoints.check_output("output", path)
    if _PASS_RATES.value:
        checkpoints.check_output("pass_rates", Path(_PASS_RATES.value))
    result, rows = _measure(config) if _PASS_RATES.value else _evaluate(config)
    result = {"checkpoint": checkpoints.CHECKPOINT.value, **result, "wall_s": time.monotonic() - began}
    cli.print_result(result)  # before anything is written: what is found out is not lost with a full disk
    if _PASS_RATES.value:
        checkpoints.write_rows("pass_rates", Path(_PASS_RATES.value), rows)
    elif files:
        checkpoints.write_rows("output", files["samples.jsonl"], rows)
    if files:
        with checkpoints.writing("output", files["result.json"]):
            write_json(files["result.json"], result)


def _evaluate(config: ExperimentConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the results of every evaluation set, and the samples."""
    sets = make_eval_sets(config.data)
    if not sets:
        raise errors.ConfigError("there is nothing to evaluate: every data.tasks[*].eval_size is 0")
    samples: list[dict[str, Any]] = []

    def keep(name: str, episodes: list[Episode]) -> None:
        samples.extend({"set": name, **describe_episode(e)} for e in episodes)

    with _collecting(config, sets) as (collector, params):
        temperature = config.evaluation.temperature
        results = evaluate(collector, params, sets, seed=config.seed, temperature=temperature, on_episodes=keep)
    return {"eval": results}, samples


def _measure(config: ExperimentConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns what the pass rates of the training problems are like by task set, and the rate of every problem."""
    everything = dataclasses.replace(config.data, pass_rates="", pass_rate_low=0.0, pass_rate_high=1.0)
    sets = distinct_tasks(make_train_stream(everything).sources)
    with _collecting(config, sets) as (collector, params):
        options = {"samples": _SAMPLES.value, "at_a_time": config.engine.slots, **config.rollout.sampling()}
        rows = {
            name: list(measure_pass_rates(collector, params, tasks, seed=config.seed, **options))
            for name, tasks in sets.items()
        }
    result = {"pass_rates": {name: summarize_pass_rates(own) for name, own in rows.items()}}
    return result, [row for own in rows.values() for row in own]


@contextlib.contextmanager
def _collecting(config: ExperimentConfig, sets: Mapping[str, Sequence[Task]]) -> Iterator[tuple[Collector, Params]]:
    """Loads the policy, checks the config and its tasks against it, and gives what samples and verifies."""
    config = with_policy_of(config, Path(checkpoints.CHECKPOINT.value))
    validate(config)
    mesh = make_mesh(config.mesh)
    check_mesh(config.policy, mesh)
    with checkpoints.loaded(mesh) as (loaded, _):
        tokenizer = loaded.tokenizer
        check_stop_strings(tokenizer, config.rollout.stop_strings, "rollout.stop_strings")
        verifiers = check_eval_tasks(config, tokenizer, sets)
        engine = Engine(
            Policy(config.policy),
            config.engine,
            tokenizer.stop_ids,
            mesh,
            stop_strings=config.rollout.stop_strings,
            decode_text=tokenizer.decode,
        )
        with VerifierPool(config.verifiers, sorted(verifiers)) as pool:
            yield Collector(engine, tokenizer, pool), loaded.params


if __name__ == "__main__":
    cli.run(main)
