"""Length under the objectives, where length does nothing: sums whose answers may stand behind any number of spaces.

The demonstrations put three spaces before every two answers on average, at random; the budget is four times the mean
length. Spaces change no verdict: whatever the length does comes from how an objective weighs tokens.

    python -m launch.grid --grid=configs/grids/length_bias.py --workdir=runs/length_bias --one_program

35 runs took 14 minutes of one core. Seen: from 4.9 tokens all objectives come to 3.5 to 4.1 in 100 steps, GSPO and
LUSPO the least. Wrong answers get shorter under GRPO too (-0.011 tokens a step, -0.014 to -0.008), against what
2503.20783 saw of long reasoning, and Dr. GRPO does not differ from it (by 0.001, -0.002 to 0.004) nor LUSPO from GSPO.
The overlong punishment takes 0.17 tokens (0.03 to 0.31) more off, and punishments for length cost no accuracy.
"""

from configs import sums
from rlvr.config import ExperimentConfig
from rlvr.grid.measures import Measure
from rlvr.grid.spec import Grid, Hypothesis, Point, preset_point

BUDGET = 20
ACCURACY = Measure("eval/sums/accuracy")
LENGTH = Measure("rollout/tokens_mean", "mean", 0.2)
GROWTH = Measure("rollout/tokens_mean", "slope")
WRONG = Measure("rollout/tokens_mean_wrong", "slope")
RIGHT = Measure("rollout/tokens_mean_right", "slope")
REWARD = Measure("reward/mean", "mean", 0.2)


def get_config() -> ExperimentConfig:
    """Returns the base config: GRPO."""
    config = sums.get_config("length_bias", steps=100, budget=BUDGET, padding=1.5, most_padding=8)
    config.optimizer.learning_rate = 3e-4
    config.warm_start.steps = 1600  # an answer's place among the spaces is learned before the answer is
    return config


def get_grid() -> Grid:
    """Returns the grid."""
    overlong = {"reward.length.overlong_buffer": BUDGET - 4, "reward.length.overlong_weight": 0.5}
    dapo = preset_point("dapo", "DAPO")
    return Grid(
        base=get_config,
        points=[
            Point({}, "GRPO"),
            preset_point("dr_grpo", "Dr. GRPO"),
            dapo,
            preset_point("gspo", "GSPO"),
            preset_point("luspo", "LUSPO"),
            Point({**dapo.overrides, **overlong}, "DAPO, overlong punished"),
            Point({"reward.length.linear": 0.25}, "GRPO, length punished"),
        ],
        seeds=range(5),
        baseline="GRPO",
        measures=[LENGTH, GROWTH, WRONG, RIGHT, ACCURACY, REWARD],
        hypotheses=[
            Hypothesis("GRPO makes wrong answers longer (2503.20783)", WRONG, "GRPO", "above", threshold=0.0),
            Hypothesis(
                "Dr. GRPO: the length of wrong answers grows less than under GRPO (2503.20783)",
                WRONG,
                "Dr. GRPO",
                "below",
                "GRPO",
            ),
            Hypothesis(
                "Dr. GRPO: wrong answers do not grow", WRONG, "Dr. GRPO", "near", threshold=0.0, smallest_effect=0.01
            ),
            Hypothesis(
                "Dr. GRPO is as accurate as GRPO (2503.20783)",
                ACCURACY,
                "Dr. GRPO",
                "near",
                "GRPO",
                smallest_effect=0.05,
            ),
            Hypothesis(
                "GSPO makes answers shorter (as LUSPO, 2602.05261, says)", GROWTH, "GSPO", "below", threshold=0.0
            ),
            Hypothesis("LUSPO's answers are longer than GSPO's (2602.05261)", LENGTH, "LUSPO", "above", "GSPO"),
            Hypothesis("LUSPO ends higher than GSPO (2602.05261)", ACCURACY, "LUSPO", "above", "GSPO"),
            Hypothesis(
                "The overlong punishment keeps answers short (DAPO, 2503.14476)",
                LENGTH,
                "DAPO, overlong punished",
                "below",
                "DAPO",
            ),
            Hypothesis(
                "A punishment for length costs no accuracy",
                ACCURACY,
                "GRPO, length punished",
                "near",
                "GRPO",
                smallest_effect=0.05,
            ),
        ],
    )
