"""A whole GRPO step through the parts of a run: rollout, verdicts, advantages, one update with AdamW.

    python -m launch.bench step --step_steps=3

`step_prompts` prompts of `step_prompt_tokens`, `step_samples` samples of exactly `step_new_tokens` each, no KL term.
The verifier takes no time and gives every sample of a group another reward, so that no row is without gradient and none
may be left out. The first step has the compilation; `step_s` is the mean of the others. `fraction_of_gemm` counts two
operations for each parameter and token of sampling and six for each of the update, prompts once for a group in both,
and attention over the keys that a token sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from launch.benches import flops
from launch.benches.measure import DTYPE, gemm, timed
from launch.benches.reward import VERIFIER
from launch.benches.subject import SHAPE, Digits, policy_config, random_params
from launch.benches.workload import make_prompts, peak_gb
from rlvr import keys, timing
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.checks import resolve
from rlvr.config import ExperimentConfig, RolloutConfig
from rlvr.credit import assign_credit, make_rows
from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.data.pipeline import make_eval_sets, make_train_stream
from rlvr.learner.batch import Row
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.state import TrainState
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import MeshConfig, make_mesh
from rlvr.parts import Parts, make_parts
from rlvr.policy.transformer import Policy
from rlvr.rollout.engine import EngineConfig
from rlvr.types import Task
from rlvr.verifiers.pool import VerifierConfig, VerifierPool

STEPS = flags.DEFINE_integer("step_steps", 3, "step: steps, of which the first compiles.", lower_bound=2)
PROMPTS = flags.DEFINE_integer("step_prompts", 8, "step: prompts.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("step_samples", 8, "step: samples a prompt.", lower_bound=2)
PROMPT = flags.DEFINE_integer("step_prompt_tokens", 32, "step: tokens of a prompt.", lower_bound=1)
NEW = flags.DEFINE_integer("step_new_tokens", 64, "step: tokens of a completion.", lower_bound=1)
ROW_TOKENS = flags.DEFINE_integer("step_row_tokens", 544, "step: tokens of a packed row.", lower_bound=1)
MICRO_TOKENS = flags.DEFINE_integer(
    "step_micro_tokens", 544, "step: tokens of a forward and backward pass.", lower_bound=1
)
PARTS = ("rollout", "verify_wait", "credit", "update")


def bench_step() -> dict[str, Any]:
    """Runs the steps."""
    config = step_config()
    mesh = make_mesh(config.mesh)
    product, operations = gemm(jax.numpy.dtype(DTYPE.value))
    jax.block_until_ready(product())
    with jax.set_mesh(mesh), VerifierPool(config.verifiers, [VERIFIER]) as pool:
        tokenizer = Digits(config.policy.vocab_size)
        parts = make_parts(config, mesh, pool, tokenizer, make_train_stream(config.data), make_eval_sets(config.data))
        ceilings, steps = [], []
        for seconds in run_steps(config, parts, mesh):
            steps.append(seconds)
            ceilings.append(operations / timed(product))
    return report(config, steps, float(np.median(ceilings)))


def step_config() -> ExperimentConfig:
    """Returns the experiment whose steps are measured."""
    config = ExperimentConfig(
        policy=policy_config(),
        data=DataConfig(
            tasks=(TaskSetConfig(source="arithmetic", name="unused"),)
        ),  # a run has one; the tasks are made here
        engine=EngineConfig(
            slots=PROMPTS.value * SAMPLES.value,
            max_prompt_tokens=PROMPT.value,
            max_new_tokens=NEW.value,
            prefill_rows=PROMPTS.value,
        ),
        rollout=RolloutConfig(prompts=PROMPTS.value, group_size=SAMPLES.value),
        verifiers=VerifierConfig(workers=1),
        objective=ObjectiveConfig(aggregation="token_mean"),
        optimizer=OptimizerConfig(learning_rate=1e-5),
        update=UpdateConfig(row_tokens=ROW_TOKENS.value, micro_tokens=MICRO_TOKENS.value),
        mesh=MeshConfig(),
    )
    return resolve(config)


def run_steps(config: ExperimentConfig, parts: Parts, mesh: Mesh) -> Iterator[dict[str, float]]:
    """Takes the steps and yields the seconds of each part of each."""
    state = parts.learner.fresh(random_params(Policy(config.policy), mesh))
    for step in range(STEPS.value):
        tasks = make_tasks(config, step)
        with timing.timed() as whole:
            state, rows, seconds = take_step(config, parts, state, tasks, step)
        assert all(len(row.completion) == NEW.value for row in rows)
        assert all(row.advantage != 0.0 for row in rows), "a row without gradient would be left out"
        yield seconds | {"step": whole()}


def make_tasks(config: ExperimentConfig, step: int) -> list[Task]:
    """Returns the tasks of a step: random ids."""
    prompts = make_prompts(PROMPTS.value, PROMPT.value, config.policy.vocab_size, seed=step)
    return [Task(i, "digits", " ".join(map(str, ids)), "", VERIFIER) for i, ids in enumerate(prompts)]


def take_step(
    config: ExperimentConfig, parts: Parts, state: TrainState, tasks: list[Task], step: int
) -> tuple[TrainState, list[Row], dict[str, float]]:
    """One step as the trainer takes it, without metrics, samples and checkpoints.

    Returns:
        (the new state, which is there, the rows of the update, seconds of each of `PARTS`).
    """
    collected = parts.collector.collect(
        parts.trainable.sampling(state.params),
        tasks,
        keys.make_key(config.seed, "rollout", step),
        samples=config.rollout.group_size,
        temperature=config.rollout.temperature,
    )
    with timing.timed() as took_credit:
        rows = make_rows(collected.episodes, config.rollout.group_size)
        rows = assign_credit(config, collected.episodes, rows, None).attach(rows)
    with timing.timed() as took_update:
        state, _ = parts.learner.update(state, rows)
        jax.block_until_ready(state)
    return (
        state,
        rows,
        {
            "rollout": collected.decode_s,
            "verify_wait": collected.verify_wait_s,
            "credit": took_credit(),
            "update": took_update(),
        },
    )


def report(config: ExperimentConfig, steps: list[dict[str, float]], ceiling: float) -> dict[str, Any]:
    """Prints the table and returns the result."""
    mean = {part: mean_of(step[part] for step in steps[1:]) for part in ("step", *PARTS)}
    rows = PROMPTS.value * SAMPLES.value
    sampling = flops.sequence_flops(config.policy, PROMPT.value, NEW.value) * rows
    prompts = flops.prompt_flops(config.policy, PROMPT.value) * PROMPTS.value
    needed = {"rollout": sampling + prompts, "update": 3 * (sampling + prompts)}
    needed["step"] = sum(needed.values())
    print(f"{'part':14}{'first s':>10}{'later s':>10}{'of GEMM':>10}")
    for part in ("step", *PARTS):
        share = f"{needed[part] / mean[part] / ceiling:10.3f}" if part in needed else ""
        print(f"{part:14}{steps[0][part]:10.3f}{mean[part]:10.3f}{share}")
    return {
        "bench": "step",
        "shape": SHAPE.value,
        "dtype": DTYPE.value,
        "platform": jax.default_backend(),
        "rows": rows,
        "prompt_tokens": PROMPT.value,
        "new_tokens": NEW.value,
        "step_s": mean["step"],
        "first_step_s": steps[0]["step"],
        **{f"{part}_s": mean[part] for part in PARTS},
        "gemm_gflops": ceiling / 1e9,
        "fraction_of_gemm": needed["step"] / mean["step"] / ceiling,
        "update_fraction_of_gemm": needed["update"] / mean["update"] / ceiling,
        "peak_gb": peak_gb(),
        "config": {"update": dataclasses.asdict(config.update), "engine": dataclasses.asdict(config.engine)},
    }


def mean_of(values: Iterable[float]) -> float:
    """Returns the mean."""
    return float(np.mean(list(values)))
