"""A tiny experiment that is both a run of the ordinary loop and a lane of the program."""

import dataclasses

import jax
import numpy as np

from rlvr.checks import resolve
from rlvr.config import ExperimentConfig
from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.program.batch import Batch
from tests import tiny

STEPS = 4


def make_config(changes=(), **own) -> ExperimentConfig:
    """Sums of one digit, judged digit by digit; some steps of warm start, so that rewards differ.

    Args:
        changes: {"objective.clip_high": 0.28}.
        own: fields of the config itself.
    """
    base = tiny.make_config(moe=False)
    options = {"digits": 1, "verifier": "exact", "padding": 0.5, "most_padding": 2, "eval_fraction": 0.4}
    config = dataclasses.replace(
        base,
        steps=STEPS,
        policy=dataclasses.replace(base.policy, layers=1),  # which compiles faster
        data=DataConfig(tasks=(TaskSetConfig(source="arithmetic", name="sums", eval_size=8, options=options),)),
        rollout=dataclasses.replace(base.rollout, prompts=8),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2, decay="linear"),
        warm_start=dataclasses.replace(base.warm_start, steps=60, rows=32),
        evaluation=dataclasses.replace(base.evaluation, interval=2),
        **own,
    )
    for name, value in dict(changes).items():
        target = config
        *path, last = name.split(".")
        for part in path:
            target = getattr(target, part)
        setattr(target, last, value)
    return resolve(config)


def run(configs, *, steps=STEPS):
    """Runs a batch from its beginning: returns (batch, lanes, rows of the warm starts, rows of the RL)."""
    batch = Batch(configs)
    params, warm = batch.warm_start([config.seed for config in configs])
    lane, rows, _ = batch.run(batch.begin(params), 0, steps)
    return batch, lane, warm, rows


def lane_of(lanes, index):
    """One lane of many, as numpy arrays."""
    return jax.tree.map(lambda x: np.asarray(x)[index], lanes)
