"""A policy of 60,000 parameters on sums of two digits, small enough that many runs fit in one program.

    python -m launch.train --config=configs/sums.py --workdir=runs/sums

The grids of `configs/grids` begin with it. A warm start imitates demonstrations that forget the carry in 60 % of the
problems that have one: the greedy answer to those is then wrong, and the verifier earns the rest. In a grid of one
program each seed's warm start is made once for all points.
"""

from typing import Any

from rlvr.algo.objectives import ObjectiveConfig
from rlvr.config import EvaluationConfig, ExperimentConfig, RolloutConfig, WarmStartConfig
from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.update import UpdateConfig
from rlvr.policy.config import PolicyConfig
from rlvr.rollout.config import EngineConfig


def get_config(
    name: str = "sums", steps: int = 80, prompts: int = 32, budget: int = 4, **options: Any
) -> ExperimentConfig:
    """Returns the config: GRPO without a KL term, four updates a rollout.

    Args:
        name: for people.
        steps, prompts: of the RL.
        budget: tokens of a completion; a sum has up to three digits and the stop token.
        options: more of the source "arithmetic".
    """
    own = {"digits": 2, "forgotten_carries": 0.6, "verifier": "exact", **options}
    return ExperimentConfig(
        name=name,
        steps=steps,
        policy=PolicyConfig(dim=48, layers=2, query_heads=4, kv_heads=2, head_size=12, hidden=128),
        data=DataConfig(tasks=(TaskSetConfig(source="arithmetic", name="sums", eval_size=512, options=own),)),
        engine=EngineConfig(slots=256, max_prompt_tokens=6, max_new_tokens=budget, prefill_rows=64, decode_steps=4),
        rollout=RolloutConfig(prompts=prompts, group_size=8),
        objective=ObjectiveConfig(),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=5),
        update=UpdateConfig(row_tokens=64, micro_tokens=2048, minibatches=4, logprob_chunk=512),
        warm_start=WarmStartConfig(
            steps=800, rows=256, optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=20, decay="cosine")
        ),
        evaluation=EvaluationConfig(interval=20),
    )
