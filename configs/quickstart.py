"""The main job: a small mixture-of-experts policy learns two-digit addition, from scratch.

A warm start imitates demonstrations of a teacher who forgets the carry in 60 % of the problems that have one: the
policy's greedy answer to those is then wrong. GRPO with a verifier earns the rest.

    bash scripts/quickstart.sh
"""

from rlvr.algo.presets import preset
from rlvr.checkpoint import CheckpointConfig
from rlvr.config import EvaluationConfig, ExperimentConfig, RolloutConfig, WarmStartConfig
from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.update import UpdateConfig
from rlvr.policy.config import PolicyConfig
from rlvr.rollout.config import EngineConfig


def get_config(objective: str = "dapo") -> ExperimentConfig:
    """Returns the config, with the objective of that name (`rlvr.algo.presets`)."""
    return ExperimentConfig(
        name="quickstart",
        steps=320,
        policy=PolicyConfig(
            dim=128,
            layers=3,
            query_heads=4,
            kv_heads=2,
            head_size=32,
            hidden=384,
            moe_layers=(1, 2),
            experts=8,
            experts_per_token=2,
            expert_hidden=128,
        ),
        data=DataConfig(
            tasks=(
                TaskSetConfig(
                    source="arithmetic",
                    name="arithmetic",
                    eval_size=512,
                    options={"digits": 2, "forgotten_carries": 0.6},
                ),
            )
        ),
        engine=EngineConfig(
            slots=256, max_prompt_tokens=6, max_new_tokens=6, prefill_rows=64, decode_steps=3, page_tokens=16
        ),
        rollout=RolloutConfig(prompts=64, group_size=8),
        objective=preset(objective),
        optimizer=OptimizerConfig(learning_rate=4e-4, warmup_steps=5, decay="linear"),
        update=UpdateConfig(row_tokens=64, micro_tokens=512, logprob_chunk=512),
        warm_start=WarmStartConfig(
            steps=400,
            rows=256,
            balance_coef=0.01,
            z_coef=0.001,
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20, decay="cosine"),
        ),
        evaluation=EvaluationConfig(interval=40),
        checkpoints=CheckpointConfig(interval=50),
    )
