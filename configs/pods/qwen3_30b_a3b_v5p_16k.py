"""GRPO on Qwen3-30B-A3B with completions of 16,384 tokens, 64 v5p chips (accelerator type v5p-128).

    python -m launch.compile --config=configs/pods/qwen3_30b_a3b_v5p_16k.py --topology=v5p:4x4x4

A row holds one sequence: attention by blocks keeps nothing of the size of a row squared, so that no axis of
the mesh has to split the sequence.
"""

import dataclasses

from configs.pods import qwen3_30b_a3b_v5p
from rlvr.config import ExperimentConfig, RolloutConfig
from rlvr.learner.update import UpdateConfig


def get_config() -> ExperimentConfig:
    """Returns the config."""
    config = qwen3_30b_a3b_v5p.get_config()
    row = 1024 + 16384
    return dataclasses.replace(
        config,
        name="qwen3_30b_a3b_v5p_16k",
        engine=dataclasses.replace(config.engine, slots=1024, max_new_tokens=16384),
        rollout=RolloutConfig(prompts=64, group_size=16),
        update=UpdateConfig(row_tokens=row, micro_tokens=64 * 2 * row, logprob_chunk=64 * 16384),
    )
