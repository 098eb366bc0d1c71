"""A small mixture-of-experts policy learns arithmetic from scratch."""

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
        name="quickstart",
        steps=100,
        policy=PolicyConfig(
            dim=128,
            layers=4,
            query_heads=4,
            kv_heads=2,
            head_size=32,
            hidden=256,
            moe_layers=(1, 2, 3),
            experts=8,
            experts_per_token=2,
            expert_hidden=128,
        ),
        data=DataConfig(
            tasks=(
                TaskSetConfig(
                    source="arithmetic",
                    name="addition",
                    eval_size=500,
                    options={"operations": ["+", "-"], "digits": 2},
                ),
            )
        ),
        engine=EngineConfig(slots=256, max_prompt_tokens=8, max_new_tokens=6, prefill_rows=32, decode_steps=6),
        rollout=RolloutConfig(prompts=32, group_size=8),
        objective=ObjectiveConfig(aggregation="token_mean"),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=5),
        update=UpdateConfig(micro_rows=128),
        warm_start=WarmStartConfig(
            steps=200,
            rows=128,
            balance_coef=0.01,
            z_coef=0.001,
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20),
        ),
        evaluation=EvaluationConfig(interval=25),
        checkpoints=CheckpointConfig(interval=25),
    )
