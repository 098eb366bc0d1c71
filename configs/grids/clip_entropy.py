"""Clipping and entropy: upper clips, lower clips, and terms that hold the entropy up.

Eight updates a rollout, so that ratios go far enough from 1 for clips to act.

    python -m launch.grid --grid=configs/grids/clip_entropy.py --workdir=runs/clip_entropy --one_program

55 runs took 5 minutes of one core. Seen: a bonus of 0.03 keeps 0.027 nats more entropy (0.020 to 0.034) than none
(0.194) and costs no accuracy; a higher upper clip cuts fewer tokens (0.7 instead of 1.4 % at 0.4), and neither clip
moves the entropy by more than 0.012 nats either way, where DAPO saw it rise: here at most 3 % of the tokens are cut.
"""

from configs import sums
from rlvr.config import ExperimentConfig
from rlvr.grid.measures import Measure
from rlvr.grid.spec import Grid, Hypothesis, Point

ENTROPY = Measure("rollout/surprisal", "mean", 0.25)
CLIPPED = Measure("clip/high", "mean")
CLIPPED_LOW = Measure("clip/low", "mean")
ACCURACY = Measure("eval/sums/accuracy")
REWARD = Measure("reward/mean", "mean")


def get_config() -> ExperimentConfig:
    """Returns the base config: DAPO's token mean, with the symmetric clip."""
    config = sums.get_config("clip_entropy", steps=60, prompts=64)
    config.objective.aggregation, config.update.minibatches = "token_mean", 8
    return config


def get_grid() -> Grid:
    """Returns the grid."""

    def clip(low: float, high: float, label: str) -> Point:
        return Point({"objective.clip_low": low, "objective.clip_high": high}, label)

    return Grid(
        base=get_config,
        points=[
            Point({}, "0.2, 0.2"),
            clip(0.2, 0.1, "0.2, 0.1"),
            clip(0.2, 0.28, "0.2, 0.28"),
            clip(0.2, 0.4, "0.2, 0.4"),
            clip(0.2, 1.0, "0.2, 1"),
            clip(0.1, 0.2, "0.1, 0.2"),
            clip(0.4, 0.2, "0.4, 0.2"),
            Point({"objective.entropy_coef": 0.01}, "bonus 0.01"),
            Point({"objective.entropy_coef": 0.03}, "bonus 0.03"),
            Point({"objective.entropy_target": 0.3, "objective.entropy_step": 0.001}, "target 0.3"),
            Point({"objective.selection.top_entropy": 0.2}, "top fifth by entropy"),
        ],
        seeds=range(5),
        baseline="0.2, 0.2",
        measures=[ENTROPY, CLIPPED, CLIPPED_LOW, REWARD, ACCURACY],
        hypotheses=[
            Hypothesis("Clip-higher keeps more entropy (DAPO, 2503.14476)", ENTROPY, "0.2, 0.28", "above", "0.2, 0.2"),
            Hypothesis("Entropy goes on rising with the upper clip", ENTROPY, "0.2, 0.4", "above", "0.2, 0.28"),
            Hypothesis("A lower upper clip keeps less entropy", ENTROPY, "0.2, 0.1", "below", "0.2, 0.2"),
            Hypothesis("A wider lower clip keeps less entropy", ENTROPY, "0.4, 0.2", "below", "0.2, 0.2"),
            Hypothesis("A higher upper clip cuts fewer tokens", CLIPPED, "0.2, 0.4", "below", "0.2, 0.2"),
            Hypothesis("Clip-higher ends higher (DAPO, 2503.14476)", ACCURACY, "0.2, 0.28", "above", "0.2, 0.2"),
            Hypothesis("An entropy bonus keeps more entropy", ENTROPY, "bonus 0.03", "above", "0.2, 0.2"),
            Hypothesis(
                "An entropy bonus costs no accuracy", ACCURACY, "bonus 0.03", "near", "0.2, 0.2", smallest_effect=0.05
            ),
            Hypothesis(
                "The adaptive bonus keeps more entropy (2505.22312)", ENTROPY, "target 0.3", "above", "0.2, 0.2"
            ),
            Hypothesis(
                "A fifth of the tokens, the most uncertain, is enough (2506.01939)",
                ACCURACY,
                "top fifth by entropy",
                "above",
                "0.2, 0.2",
                smallest_effect=0.0,
            ),
        ],
    )
