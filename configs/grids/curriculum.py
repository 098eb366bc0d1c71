"""Curricula on the tasks of `multitask.py`, evenly many of each: stages, bandits, prompts by their own success rates.

    python -m launch.grid --grid=configs/grids/curriculum.py --workdir=runs/curriculum --workers=2

30 runs took 17 processor minutes beside their warm starts, which are those of `multitask.py`. Seen: MoPPS learns from
fewer groups that are all right (44 % instead of 57 of even shares; 13 points less, 7 to 20), and bandits lower them
too; what that does to accuracies (means at the end of 0.68 with even shares and stages to 0.72 with learning progress
and MoPPS) five seeds do not decide. Stages opened late: they gave the hardest task 19 % of the prompts.
"""

import dataclasses

from configs.grids import multitask
from rlvr.algo.curriculum import CurriculumConfig
from rlvr.config import ExperimentConfig
from rlvr.grid.measures import Measure
from rlvr.grid.spec import Grid, Hypothesis, Point

FLAT = Measure("groups/all_correct", "mean")
ALONG_THE_WAY = Measure("eval/accuracy_mean", "mean")


def get_config() -> ExperimentConfig:
    """Returns the base config: tasks drawn evenly."""
    base = multitask.get_config()
    return dataclasses.replace(base, name="grid_curriculum", curriculum=CurriculumConfig(sampler="uniform"))


def bandit(sampler: str, label: str, **changes: float | str) -> Point:
    """Returns the point of a bandit that forgets, with a floor."""
    own = {f"curriculum.{name}": value for name, value in changes.items()}
    shared = {"curriculum.min_probability": 0.05, "curriculum.discount": 0.9, "curriculum.signal": "variance"}
    return Point({**shared, "curriculum.sampler": sampler, **own}, label)


def get_grid() -> Grid:
    """Returns the grid."""
    stages = {"curriculum.stages": ("digits", "sums", "differences"), "curriculum.stage_accuracy": 0.8}
    return Grid(
        base=get_config,
        points=[
            Point({}, "uniform"),
            Point(stages, "stages"),
            bandit("epsilon_greedy", "progress", signal="progress", epsilon=0.3),
            bandit("thompson", "Thompson"),
            bandit("exp3", "EXP3", learning_rate=0.5),
            Point({"curriculum.sampler": "mopps", "curriculum.arm": "prompt", "curriculum.discount": 0.5}, "MoPPS"),
        ],
        seeds=range(5),
        baseline="uniform",
        measures=[multitask.MEAN, multitask.WORST, ALONG_THE_WAY, multitask.EACH, FLAT, multitask.HARD_SHARE],
        hypotheses=[
            Hypothesis("Easy tasks first learn faster", ALONG_THE_WAY, "stages", "above", "uniform"),
            Hypothesis("Thompson sampling of uncertain tasks does", ALONG_THE_WAY, "Thompson", "above", "uniform"),
            Hypothesis("So does drawing by learning progress", ALONG_THE_WAY, "progress", "above", "uniform"),
            Hypothesis(
                "MoPPS wastes fewer groups on prompts that are known (2507.04632)", FLAT, "MoPPS", "below", "uniform"
            ),
            Hypothesis("It ends with a better mean", multitask.MEAN, "MoPPS", "above", "uniform"),
        ],
    )
