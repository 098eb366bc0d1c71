"""A grid over the tiny experiment, one point of which has no data."""

from rlvr.config import ExperimentConfig
from rlvr.grid.measures import Measure
from rlvr.grid.spec import Grid, Hypothesis, Point
from tests.tiny import make_config

REWARD = Measure("reward/mean", "mean", 0.5)


def get_config() -> ExperimentConfig:
    """Returns the base config."""
    return make_config()


def get_grid() -> Grid:
    """Returns the grid."""
    return Grid(
        base=get_config,
        points=[
            Point({}, "tiny"),
            Point({"objective.advantage": "dr_grpo", "policy.moe_layers": ()}, "dense"),
            Point({"data.tasks[0].path": "tests/configs/nowhere"}, "no data"),
        ],
        seeds=(0,),
        baseline="tiny",
        measures=[REWARD],
        hypotheses=[Hypothesis("A dense policy earns less", REWARD, "dense", "below", "tiny")],
    )
