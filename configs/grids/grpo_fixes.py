"""Published objectives side by side, on sums whose carries the warm start has learned to forget.

Four updates a rollout, so that ratios leave 1 and what the objectives do with them can matter.

    python -m launch.grid --grid=configs/grids/grpo_fixes.py --workdir=runs/grpo_fixes --one_program

75 runs took 8 minutes of one core. Seen: final accuracies of 0.69 (RLOO) to 0.74 (MaxRL, DAPO's loss), GRPO 0.72, with
intervals that overlap; LUSPO learned faster than GSPO by 0.010 of reward (0.003 to 0.018), rewards of pass@4 kept 0.07
nats more entropy (0.05 to 0.09) and earned less, and CISPO ended below DAPO's loss by 0.034 (0.008 to 0.061), against
ScaleRL. The other claims, that a higher upper clip keeps more entropy among them, were undecided.
"""

from configs import sums
from rlvr.config import ExperimentConfig
from rlvr.grid.measures import Measure
from rlvr.grid.spec import Grid, Hypothesis, Point, preset_point

ACCURACY = Measure("eval/sums/accuracy")
REWARD = Measure("reward/mean", "mean")
ENTROPY = Measure("rollout/surprisal", "mean", 0.25)
CLIPPED = Measure("clip/high", "mean")
DRIFT = Measure("kl/start")


def get_config() -> ExperimentConfig:
    """Returns the base config: GRPO as published, without a KL term."""
    return sums.get_config("grpo_fixes")


def get_grid() -> Grid:
    """Returns the grid. All KL terms are off, so that the fixes alone differ."""
    without = {"kl": "none", "kl_coef": 0.0}
    return Grid(
        base=get_config,
        points=[
            Point({}, "GRPO"),
            preset_point("dr_grpo", "Dr. GRPO"),
            preset_point("dapo", "DAPO's loss"),
            preset_point("gspo", "GSPO"),
            preset_point("luspo", "LUSPO"),
            preset_point("cispo", "CISPO"),
            preset_point("gmpo", "GMPO"),
            preset_point("sapo", "SAPO"),
            preset_point("aspo", "ASPO"),
            preset_point("dppo_tv", "DPPO"),
            preset_point("rloo", "RLOO", **without),
            preset_point("reinforce_pp_baseline", "REINFORCE++ baseline"),
            preset_point("lite_ppo", "Lite PPO"),
            preset_point("maxrl", "MaxRL"),
            preset_point("pass_at_k", "pass@4", pass_k=4),
        ],
        seeds=range(5),
        baseline="GRPO",
        measures=[ACCURACY, REWARD, ENTROPY, CLIPPED, DRIFT],
        hypotheses=[
            Hypothesis("GRPO teaches the carry that imitation forgot", ACCURACY, "GRPO", "above", threshold=0.6),
            Hypothesis(
                "A higher upper clip keeps more entropy (DAPO, 2503.14476)", ENTROPY, "DAPO's loss", "above", "GRPO"
            ),
            Hypothesis("GSPO learns faster than GRPO (2507.18071)", REWARD, "GSPO", "above", "GRPO"),
            Hypothesis("LUSPO learns faster than GSPO (2602.05261)", REWARD, "LUSPO", "above", "GSPO"),
            Hypothesis(
                "CISPO ends higher than DAPO's loss (ScaleRL, 2510.13786)", ACCURACY, "CISPO", "above", "DAPO's loss"
            ),
            Hypothesis("CISPO ends higher than GSPO (ScaleRL, 2510.13786)", ACCURACY, "CISPO", "above", "GSPO"),
            Hypothesis("GMPO keeps more entropy than GRPO (2507.20673)", ENTROPY, "GMPO", "above", "GRPO"),
            Hypothesis("SAPO ends higher than GRPO (2511.20347)", ACCURACY, "SAPO", "above", "GRPO"),
            Hypothesis(
                "ASPO keeps more entropy than DAPO's loss (2510.06062)", ENTROPY, "ASPO", "above", "DAPO's loss"
            ),
            Hypothesis("Lite PPO is no worse than GRPO (2508.08221)", ACCURACY, "Lite PPO", "above", "GRPO"),
            Hypothesis("MaxRL keeps more entropy than RLOO (2602.02710)", ENTROPY, "MaxRL", "above", "RLOO"),
            Hypothesis(
                "Rewards of pass@4 keep more entropy than GRPO's (2508.10751)", ENTROPY, "pass@4", "above", "GRPO"
            ),
        ],
    )
