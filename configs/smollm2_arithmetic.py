"""SmolLM2-135M-Instruct learns three reasoning-gym tasks it does badly at.

bash scripts/fetch_smollm2.sh weights/smollm2-135m-instruct
python -m launch.train --config=configs/smollm2_arithmetic.py --workdir=runs/smollm2_arithmetic
"""

from typing import Any

from rlvr.algo.objectives import ObjectiveConfig
from rlvr.checkpoint import CheckpointConfig
from rlvr.config import EvaluationConfig, ExperimentConfig, RolloutConfig
from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.update import UpdateConfig
from rlvr.rollout.engine import EngineConfig

# reasoning-gym's own scorers give a completion that holds the answer among other words a small part of the score,
# so there is something to learn from before the first bare answer.
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
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
    "letter_counting": {"min_words": 2, "max_words": 4},
}
# Two examples double the share of groups with any signal at the start; letter counting does as well without.
EXAMPLES = "Reply with the answer only, like this:\nCalculate 4 + 5. -> 9\nCalculate 2 + 1 + 3. -> 6"
SYSTEM = {"basic_arithmetic": EXAMPLES, "chain_sum": EXAMPLES, "letter_counting": ""}


def get_config() -> ExperimentConfig:
    """Returns the config."""
    tasks = tuple(
        TaskSetConfig(
            source="reasoning_gym", name=name, system=SYSTEM[name], train_size=1000, eval_size=100, options=options
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
            max_prompt_tokens=84,
            max_new_tokens=20,
            prefill_rows=8,
            prompt_buckets=(56,),
            decode_steps=4,
        ),
        rollout=RolloutConfig(prompts=8, group_size=8, temperature=0.7),
        objective=ObjectiveConfig(aggregation="token_mean", clip_high=0.28),
        optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=5, b2=0.99),
        update=UpdateConfig(micro_rows=8, length_buckets=(96,)),
        evaluation=EvaluationConfig(interval=30),
        checkpoints=CheckpointConfig(interval=15, keep=1),
        sample_interval=5,
    )
