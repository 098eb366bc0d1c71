"""A grid that one program can express: two structures, each with two points and two seeds."""

from rlvr.config import ExperimentConfig
from rlvr.grid.measures import Measure
from rlvr.grid.spec import Grid, Hypothesis, Point
from tests.program.runs import make_config

REWARD = Measure("reward/mean", "mean", 0.5)


def get_config() -> ExperimentConfig:
    """Returns the base config."""
    return make_config({"steps": 24, "policy.layers": 2})


def get_grid() -> Grid:
    """Returns the grid."""
    return Grid(
        base=get_config,
        points=[
            Point({}, "base"),
            Point({"objective.clip_high": 0.05}, "narrow"),
            Point({"rollout.group_size": 8}, "wide"),
            Point({"rollout.group_size": 8, "objective.clip_high": 0.05}, "wide, narrow"),
        ],
        seeds=(0, 1),
        baseline="base",
        measures=[REWARD, Measure("eval/*/accuracy"), Measure("clip/high", "mean")],
        hypotheses=[Hypothesis("More samples earn more", REWARD, "wide", "above", "base")],
    )
