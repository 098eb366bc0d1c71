"""GRPO, pi-Distill and on-policy self-distillation on sums whose hint is the answer, at equal samples.

All points start from the same warm start of their seed, sample 256 completions a step, and are judged without the hint.

    python -m launch.grid --grid=configs/grids/distill.py --workdir=runs/distill --workers=2

24 runs took 16 processor minutes. Seen (accuracy without the hint, 0.26 at the start): GRPO 0.45, the reward with the
KL to the hinted policy 0.50 (0.004 to 0.087 above GRPO), self-distillation without any reward 0.52 by whole
distributions and 0.47 by the sampled tokens (undecided), and pi-Distill less than GRPO, 0.32 with both sides (0.11 to
0.14 below), against its paper: with the answer as hint 99 % of its samples are right, so that groups have no spread and
only its KL teaches.
"""

from configs import distill
from rlvr.grid.measures import Measure
from rlvr.grid.spec import Grid, Hypothesis, Point

ACCURACY = Measure("eval/arithmetic/accuracy")
REWARD = Measure("reward/mean", "mean", 0.25)
APART = Measure("distill/divergence", "mean", 0.25)


def get_grid() -> Grid:
    """Returns the grid."""
    return Grid(
        base="configs/distill.py",
        points=[
            Point({f"distill.{field}": value for field, value in fields.items()}, name)
            for name, fields in distill.METHODS.items()
        ],
        seeds=range(3),
        baseline="grpo",
        measures=[ACCURACY, REWARD, APART],
        hypotheses=[
            Hypothesis("pi-Distill (both sides) beats GRPO", ACCURACY, "pi_joint", "above", "grpo"),
            Hypothesis("pi-Distill: both sides beat the teacher's alone", ACCURACY, "pi_joint", "above", "pi_teacher"),
            Hypothesis("pi-Distill: both sides beat the student's alone", ACCURACY, "pi_joint", "above", "pi_student"),
            Hypothesis(
                "A reward with the KL to the hinted policy beats GRPO", ACCURACY, "opsd_reward", "above", "grpo"
            ),
            Hypothesis("Self-distillation without any reward beats GRPO", ACCURACY, "opsd", "above", "grpo"),
            Hypothesis("Whole distributions beat the sampled tokens'", ACCURACY, "opsd", "above", "opd"),
        ],
    )
