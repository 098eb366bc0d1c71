"""Updates between sampling and learning, and what corrects for them.

All points take the same number of updates with the same number of samples each; what differs is by how many updates the
policy has moved since it sampled them: 0, 1, 4 or 16 when the first of a rollout is taken (rollouts of 1, 4 or 16
updates, sampled one rollout ahead), and up to 0, 1, 7 or 31 at its last.

    python -m launch.grid --grid=configs/grids/staleness.py --workdir=runs/staleness --one_program

105 runs took 9.4 minutes of one core. Seen (differences of the mean reward, 0.590 on policy): one update behind costs
nothing (+0.004, -0.006 to 0.014), sixteen cost 0.028 (0.019 to 0.037) under a clip and 0.033 more (0.002 to 0.064)
without a bound. At sixteen decoupled PPO, truncated weights and DPPO are as good as the clip to within 0.03, and M2PO
is worse than it by 0.074 (0.014 to 0.133), against its paper.
"""

from configs import sums
from rlvr.config import ExperimentConfig
from rlvr.grid.measures import Measure
from rlvr.grid.spec import Grid, Hypothesis, Point, preset_point

UPDATES, PROMPTS = 320, 4  # of a run, and of each update
ACCURACY = Measure("eval/sums/accuracy")
REWARD = Measure("reward/mean", "mean")
GAP = Measure("gap/mean", "mean")
ENTROPY = Measure("rollout/surprisal", "mean", 0.25)


def get_config() -> ExperimentConfig:
    """Returns the base config: GRPO, exactly on policy."""
    config = sums.get_config("staleness", steps=UPDATES, prompts=PROMPTS)
    config.update.minibatches, config.optimizer.learning_rate = 1, 3e-4
    config.evaluation.interval = UPDATES // 4
    return config


def lag(updates: int) -> dict[str, object]:
    """Returns the overrides under which the policy has moved by so many updates since it sampled."""
    if not updates:
        return {}
    return {
        "steps": UPDATES // updates,
        "rollout.prompts": PROMPTS * updates,
        "rollout.staleness": 1,
        "update.minibatches": updates,
        "evaluation.interval": UPDATES // updates // 4,
    }


def get_grid() -> Grid:
    """Returns the grid."""
    corrections = {
        "clip": {},
        "no bound": {"objective.surrogate": "plain"},
        "decoupled": preset_point("decoupled").overrides,
        "TIS": preset_point("tis").overrides,
        "DPPO": preset_point("dppo_tv").overrides,
        "M2PO": preset_point("m2po").overrides,
    }
    points = [
        Point({**lag(updates), **overrides}, f"{name}, {updates}")
        for updates in (0, 1, 4, 16)
        for name, overrides in corrections.items()
        if updates or name in ("clip", "no bound", "DPPO")  # the others are a clip, or nothing, on policy
    ]
    return Grid(
        base=get_config,
        points=points,
        seeds=range(5),
        baseline="clip, 0",
        measures=[ACCURACY, REWARD, GAP, ENTROPY],
        hypotheses=[
            Hypothesis("One update behind costs nothing", REWARD, "clip, 1", "near", "clip, 0", smallest_effect=0.03),
            Hypothesis("Sixteen updates behind cost reward under a clip", REWARD, "clip, 16", "below", "clip, 0"),
            Hypothesis(
                "Without a bound staleness costs more than with a clip", REWARD, "no bound, 16", "below", "clip, 16"
            ),
            Hypothesis(
                "Decoupled PPO bears staleness better (2505.24298)", REWARD, "decoupled, 16", "above", "clip, 16"
            ),
            Hypothesis(
                "Truncated weights bear it better than untruncated", REWARD, "TIS, 16", "above", "decoupled, 16"
            ),
            Hypothesis("DPPO bears it better than a clip (2602.04879)", REWARD, "DPPO, 16", "above", "clip, 16"),
            Hypothesis("M2PO bears it better than a clip (2510.01161)", REWARD, "M2PO, 16", "above", "clip, 16"),
            Hypothesis(
                "M2PO at 16 is as good as on policy (2510.01161)",
                ACCURACY,
                "M2PO, 16",
                "near",
                "clip, 0",
                smallest_effect=0.05,
            ),
        ],
    )
