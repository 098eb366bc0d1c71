"""Evaluates a policy on a config's held-out tasks:

    python -m launch.evaluate --checkpoint=DIR --config=configs/smollm2_arithmetic.py [--output=FOLDER]

The last line is `RESULT {...}` with, per task set, n, accuracy, accuracy_lenient, the 95 % interval and mean_tokens.
With --output the folder gets result.json and samples.jsonl (every completion with its verdict).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch import checkpoints, cli
from rlvr.config import validate
from rlvr.data.pipeline import make_eval_sets
from rlvr.evaluation import evaluate
from rlvr.metrics import describe_episode
from rlvr.parts import check_eval_tasks
from rlvr.rollout.collect import Collector, Episode
from rlvr.rollout.engine import Engine
from rlvr.verifiers.pool import VerifierPool
from rlvr.workdir import write_json

_CONFIG = cli.define_config()
_OUTPUT = flags.DEFINE_string("output", "", "Folder for result.json and samples.jsonl.")
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """Evaluates every set of the config."""
    del argv
    config = _CONFIG.value
    sets = make_eval_sets(config.data)
    samples: list[dict[str, Any]] = []
    began = time.monotonic()

    def keep(name: str, episodes: list[Episode]) -> None:
        samples.extend({"set": name, **describe_episode(e)} for e in episodes)

    with checkpoints.loaded() as (loaded, mesh):
        config = dataclasses.replace(config, policy=loaded.policy.config)
        validate(config)
        verifiers = check_eval_tasks(config, loaded.tokenizer, sets)
        engine = Engine(loaded.policy, config.engine, loaded.tokenizer.stop_ids, mesh)
        with VerifierPool(config.verifiers, sorted(verifiers)) as pool:
            results = evaluate(
                Collector(engine, loaded.tokenizer, pool),
                loaded.params,
                sets,
                seed=config.seed,
                temperature=config.evaluation.temperature,
                on_episodes=keep,
            )
    result = {"checkpoint": checkpoints.CHECKPOINT.value, "eval": results, "wall_s": time.monotonic() - began}
    if _OUTPUT.value:
        folder = Path(_OUTPUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "result.json", result)
        checkpoints.write_rows(folder / "samples.jsonl", samples)
    cli.print_result(result)


if __name__ == "__main__":
    cli.run(main)
