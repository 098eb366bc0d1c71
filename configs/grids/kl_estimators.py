"""Estimators of the KL to the start, in the loss and in the reward, at one coefficient and at a tenth of it.

    python -m launch.grid --grid=configs/grids/kl_estimators.py --workdir=runs/kl_estimators --one_program

65 runs took 6 minutes of one core. Seen: at 0.3 every estimator holds the policy nearer its start (KL 0.14 to 0.19 nats
a token instead of 0.33), k3 more than k2 (0.143 against 0.180), though its gradient is that of the other KL, and k3+,
whose gradient is k2's, exactly as k2. At 0.03 none costs accuracy that five seeds could show; at 0.3 rewards come later
(0.57 instead of 0.61) and k2 ends as accurate as nothing, to within 0.04.
"""

from configs import sums
from rlvr.config import ExperimentConfig
from rlvr.grid.measures import Measure
from rlvr.grid.spec import Grid, Hypothesis, Point

KL = Measure("kl/start", "mean", 0.25)
ACCURACY = Measure("eval/sums/accuracy")
REWARD = Measure("reward/mean", "mean")
ENTROPY = Measure("rollout/surprisal", "mean", 0.25)
ESTIMATORS = ("k2", "k3", "k3+", "k3_is", "k1_in_reward", "k1_to_go")


def get_config() -> ExperimentConfig:
    """Returns the base config: no KL, advantages that are not divided by the spread, a token mean.

    Without the division, a term in the reward and one in the loss of the same coefficient pull equally.
    """
    config = sums.get_config("kl_estimators")
    config.evaluation.interval = 5  # without a KL term, that to the start is measured then
    config.objective.advantage, config.objective.aggregation = "dr_grpo", "token_mean"
    return config


def get_grid() -> Grid:
    """Returns the grid."""
    coefs = (0.03, 0.3)
    points = [
        Point({"objective.kl": name, "objective.kl_coef": coef}, f"{name} {coef:g}")
        for name in ESTIMATORS
        for coef in coefs
    ]
    return Grid(
        base=get_config,
        points=[Point({}, "no KL"), *points],
        seeds=range(5),
        baseline="no KL",
        measures=[KL, REWARD, ACCURACY, ENTROPY],
        hypotheses=[
            *(
                Hypothesis(f"{name} of 0.3 holds the policy nearer its start", KL, f"{name} 0.3", "below", "no KL")
                for name in ESTIMATORS
            ),
            Hypothesis(
                "k3, whose gradient is that of the other KL, holds less than k2",
                KL,
                "k3 0.3",
                "above",
                "k2 0.3",
            ),
            Hypothesis(
                "k3+ holds as k2 does: the gradient is the same", KL, "k3+ 0.3", "near", "k2 0.3", smallest_effect=0.02
            ),
            Hypothesis("A weak KL costs no accuracy", ACCURACY, "k2 0.03", "near", "no KL", smallest_effect=0.05),
            Hypothesis("A strong one does", ACCURACY, "k2 0.3", "below", "no KL"),
        ],
    )
