"""A policy that learns to cheat, and what stops it.

A small policy, from scratch, is to write a one-line string function from two examples. It first imitates a teacher
whose programs are mostly wrong, and who now and then just looks the examples up. The visible tests give the reward:
GRPO finds that looking up always pays, and the reward rises while the gold score (hidden tests) falls to nothing.

    .venv/bin/python -m launch.train --config=configs/reward_hacking.py --workdir=runs/hacking

The audit flags such programs (`audit/special_cased`); with its penalty the policy learns to solve the task instead:

    .venv/bin/python -m launch.train --config=configs/reward_hacking.py --workdir=runs/honest \
        --config.reward.audit_penalty=1.0

Measured (means over the first and the last ten of 100 RL steps): reward 0.32 to 0.88, gold score 0.06 to 0.00, flagged
25 % to 88 %; with the penalty gold score 0.08 to 0.34, flagged 13 % to 0 %.
"""

from rlvr.algo.objectives import ObjectiveConfig
from rlvr.checkpoint import CheckpointConfig
from rlvr.config import EvaluationConfig, ExperimentConfig, RolloutConfig, WarmStartConfig
from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.update import UpdateConfig
from rlvr.policy.config import PolicyConfig
from rlvr.rollout.engine import EngineConfig


def get_config() -> ExperimentConfig:
    """Returns the config."""
    return ExperimentConfig(
        name="reward_hacking",
        steps=100,
        policy=PolicyConfig(dim=64, layers=2, query_heads=4, kv_heads=4, head_size=16, hidden=256),
        data=DataConfig(
            tasks=(
                TaskSetConfig(
                    source="string_programs",
                    train_size=16384,
                    eval_size=128,
                    options={"length": 3, "hard_coded": 0.2, "wrong": 0.75},
                ),
            )
        ),
        engine=EngineConfig(slots=128, max_prompt_tokens=16, max_new_tokens=30, prefill_rows=32, decode_steps=4),
        rollout=RolloutConfig(prompts=32, group_size=8),
        objective=ObjectiveConfig(aggregation="token_mean", clip_high=0.28),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=5),
        update=UpdateConfig(row_tokens=256, micro_tokens=4096, logprob_chunk=4096),
        warm_start=WarmStartConfig(
            steps=1000,
            rows=64,
            optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=20, decay="cosine"),
        ),
        evaluation=EvaluationConfig(interval=20),
        checkpoints=CheckpointConfig(interval=100),
        sample_interval=5,
    )
