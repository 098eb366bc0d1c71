"""SmolLM2-135M-Instruct learns three reasoning-gym tasks it does badly at.

bash scripts/fetch_smollm2.sh weights/smollm2-135m-instruct
python -m launch.train --config=configs/smollm2_arithmetic.py --workdir=runs/smollm2_arithmetic
"""

from typing import Any

from rlvr.algo.presets import preset
from rlvr.checkpoint import CheckpointConfig
from rlvr.config import EvaluationConfig, ExperimentConfig, RolloutConfig
from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.update import UpdateConfig
from rlvr.rollout.config import EngineConfig

# reasoning-gym's own scorers give a completion that holds the answer among other words a small part of the score,
# the larger the fewer the other words: there is something to learn from before the first bare answer.
GENERATORS: dict[str, dict[str, Any]] = {
    "basic_arithmetic": {
        "min_terms": 2,
        "max_terms": 3,
        "min_digits": 1,
        "max_digits": 1,
        "operators": ["+"],
        "allow_parentheses": False,
        "allow_negation": False,
    },
    "gcd": {"min_value": 1, "max_value": 50},
    "letter_counting": {"min_words": 2, "max_words": 4},
}
NUMBER = "Reply with one number and nothing else."
INSTRUCTION = {"basic_arithmetic": NUMBER, "gcd": "", "letter_counting": NUMBER}  # gcd says so itself


def get_config(objective: str = "dapo") -> ExperimentConfig:
    """Returns the config, with the objective of that name (`rlvr.algo.presets`)."""
    tasks = tuple(
        TaskSetConfig(
            source="reasoning_gym",
            name=name,
            instruction=INSTRUCTION[name],
            train_size=1000,
            eval_size=100,
            options=options,
        )
        for name, options in GENERATORS.items()
    )
    return ExperimentConfig(
        name="smollm2_arithmetic",
        checkpoint="weights/smollm2-135m-instruct",
        steps=60,
        data=DataConfig(tasks=tasks),
        engine=EngineConfig(
            slots=64,
            max_prompt_tokens=80,
            max_new_tokens=16,
            prefill_rows=8,
            prompt_buckets=(64,),
            decode_steps=4,
        ),
        rollout=RolloutConfig(prompts=8, group_size=8, temperature=0.7),
        objective=preset(objective),
        optimizer=OptimizerConfig(learning_rate=3e-5, warmup_steps=5, b2=0.99),
        update=UpdateConfig(row_tokens=256, micro_tokens=512),
        evaluation=EvaluationConfig(interval=30),
        checkpoints=CheckpointConfig(interval=15, keep=1),
        sample_interval=5,
    )
