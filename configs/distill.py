"""A teacher with the answer beside the problem, and a student without: a small policy's sums, from scratch.

The warm start imitates both: right answers behind the hint (the result's digits, reversed), and behind the problem
alone somebody who forgets the carry in nine of ten problems that have one. What the student then samples is seldom
right where it matters, and what the teacher samples mostly.

    python -m launch.train --config=configs/distill.py:opsd --workdir=runs/opsd
"""

import dataclasses
from typing import Any

from configs import quickstart
from rlvr import errors
from rlvr.algo.distill import DistillConfig
from rlvr.config import ExperimentConfig, RolloutConfig
from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.policy.config import PolicyConfig
from rlvr.rollout.config import EngineConfig

METHODS: dict[str, dict[str, Any]] = {
    "grpo": {},
    # pi-Distill, 2602.04942: the student alone, both, the teacher alone.
    "pi_student": {"method": "pi", "alpha": 0.0, "coef": 0.1},
    "pi_joint": {"method": "pi", "alpha": 0.5, "coef": 0.1},
    "pi_teacher": {"method": "pi", "alpha": 1.0, "coef": 0.1},
    # OPSD of the same paper: the verifier's reward, and the reverse KL to the hinted copy.
    "opsd_reward": {"method": "on_policy", "form": "full", "coef": 0.1},
    # OPSD of 2601.18734: no reward, the Jensen-Shannon divergence from the hinted policy of the start.
    "opsd": {"method": "on_policy", "form": "full", "teacher": "start", "reward": 0.0, "beta": 0.5},
    "opsd_ema": {"method": "on_policy", "form": "full", "teacher": "ema", "reward": 0.0, "beta": 0.5},
    # The same teacher's log-probs of the sampled tokens as advantages.
    "opd": {"method": "on_policy", "teacher": "start", "reward": 0.0},
}


def get_config(method: str = "grpo") -> ExperimentConfig:
    """Returns the config of a method of `METHODS`."""
    errors.check_choice("method", method, METHODS)
    base = quickstart.get_config()
    sums = TaskSetConfig(
        source="arithmetic",
        name="arithmetic",
        eval_size=512,
        hint_template="{hint}|{prompt}",
        options={"digits": 2, "forgotten_carries": 0.9, "hint": "answer"},
    )
    return dataclasses.replace(
        base,
        name="distill",
        steps=100,
        policy=PolicyConfig(dim=96, layers=3, query_heads=4, kv_heads=2, head_size=24, hidden=320),
        data=DataConfig(tasks=(sums,)),
        engine=EngineConfig(
            slots=256, max_prompt_tokens=10, max_new_tokens=6, prefill_rows=64, decode_steps=3, page_tokens=16
        ),
        rollout=RolloutConfig(prompts=32, group_size=8),
        distill=DistillConfig(**METHODS[method]),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=5),
        warm_start=dataclasses.replace(base.warm_start, balance_coef=0.0, z_coef=0.0, hinted=0.5),
        evaluation=dataclasses.replace(base.evaluation, interval=25),
        checkpoints=dataclasses.replace(base.checkpoints, interval=200),
    )
