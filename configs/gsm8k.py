"""GSM8K's test rows, to evaluate a policy on:

    python -m launch.evaluate --checkpoint=weights/smollm2-135m-instruct --config=configs/gsm8k.py \
        --config.data.tasks[0].path=FOLDER          (of train.jsonl[.gz] and test.jsonl[.gz])
"""

from rlvr.config import ExperimentConfig
from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.rollout.config import EngineConfig


def get_config() -> ExperimentConfig:
    """Returns the config."""
    test = TaskSetConfig(
        source="gsm8k",
        weight=0.0,
        eval_size=1119,
        path="data/gsm8k",
        answer_format="boxed",
        instruction="Put the final number in \\boxed{}.",
    )
    return ExperimentConfig(
        name="gsm8k",
        data=DataConfig(tasks=(test,)),
        engine=EngineConfig(
            slots=128,
            max_prompt_tokens=320,
            max_new_tokens=192,
            prefill_rows=8,
            prompt_buckets=(96, 128, 192),
            decode_steps=8,
        ),
    )
