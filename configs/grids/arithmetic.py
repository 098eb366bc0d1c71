"""Parts of GRPO, one at a time, on the quickstart's sums with a smaller policy: a grid for a laptop.

Four updates a rollout, so that ratios leave 1 and clipping can matter.

    python -m launch.grid --grid=configs/grids/arithmetic.py --workdir=runs/arithmetic --workers=2
"""

import dataclasses

from configs import quickstart
from rlvr.config import ExperimentConfig, RolloutConfig
from rlvr.grid.measures import Measure
from rlvr.grid.spec import Grid, Hypothesis, Point
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.policy.config import PolicyConfig

ACCURACY = Measure("eval/arithmetic/accuracy")
REWARD = Measure("reward/mean", "mean")
ENTROPY = Measure("rollout/surprisal", "mean", 0.25)
CLIPPED = Measure("clip/high", "mean")


def get_config() -> ExperimentConfig:
    """Returns the base config: GRPO as published, without a KL term."""
    base = quickstart.get_config()
    return dataclasses.replace(
        base,
        name="grid_arithmetic",
        steps=100,
        policy=PolicyConfig(dim=96, layers=3, query_heads=4, kv_heads=2, head_size=24, hidden=320),
        rollout=RolloutConfig(prompts=32, group_size=8),
        objective=dataclasses.replace(base.objective, aggregation="seq_mean_token_mean", clip_high=0.2),
        warm_start=dataclasses.replace(base.warm_start, balance_coef=0.0, z_coef=0.0),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=5),
        update=dataclasses.replace(base.update, minibatches=4),
        evaluation=dataclasses.replace(base.evaluation, interval=25),
        checkpoints=dataclasses.replace(base.checkpoints, interval=200),
    )


def get_grid() -> Grid:
    """Returns the grid."""
    return Grid(
        base=get_config,
        points=[
            Point({}, "GRPO"),
            Point({"objective.advantage": "dr_grpo"}, "no division by the spread"),
            Point({"objective.aggregation": "seq_sum_norm"}, "constant length norm"),
            Point({"objective.advantage": "dr_grpo", "objective.aggregation": "seq_sum_norm"}, "Dr. GRPO"),
            Point({"objective.aggregation": "token_mean"}, "token mean"),
            Point({"objective.clip_high": 0.28}, "clip higher"),
            Point({"objective.aggregation": "token_mean", "objective.clip_high": 0.28}, "DAPO's loss"),
        ],
        seeds=range(5),
        baseline="GRPO",
        measures=[ACCURACY, REWARD, ENTROPY, CLIPPED],
        hypotheses=[
            Hypothesis("GRPO teaches the carry", ACCURACY, "GRPO", "above", threshold=0.6),
            Hypothesis(
                "Advantages that are not divided by the group's spread learn more slowly at the same learning rate",
                REWARD,
                "no division by the spread",
                "below",
                "GRPO",
            ),
            Hypothesis(
                "A higher upper clip keeps more entropy (DAPO, 2503.14476)", ENTROPY, "clip higher", "above", "GRPO"
            ),
            Hypothesis("A higher upper clip cuts fewer tokens", CLIPPED, "clip higher", "below", "GRPO"),
            Hypothesis(
                "Where all completions are about equally long, a token mean is as good",
                ACCURACY,
                "token mean",
                "near",
                "GRPO",
                smallest_effect=0.05,
            ),
        ],
    )
