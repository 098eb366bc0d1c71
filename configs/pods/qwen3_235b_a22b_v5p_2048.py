"""GRPO on Qwen3-235B-A22B, 2,048 v5p chips (accelerator type v5p-4096): the largest policy here on the largest slice.

python -m launch.compile --config=configs/pods/qwen3_235b_a22b_v5p_2048.py --topology=v5p:8x16x16
"""

import dataclasses

from configs.pods import qwen3_235b_a22b_v5p
from rlvr.config import ExperimentConfig, RolloutConfig
from rlvr.mesh import MeshConfig


def get_config() -> ExperimentConfig:
    """Returns the config."""
    config = qwen3_235b_a22b_v5p.get_config()
    engine, update = config.engine, config.update
    return dataclasses.replace(
        config,
        name="qwen3_235b_a22b_v5p_2048",
        engine=dataclasses.replace(engine, slots=4 * engine.slots, prefill_rows=4 * engine.prefill_rows),
        rollout=RolloutConfig(prompts=4 * config.rollout.prompts, group_size=16),
        update=dataclasses.replace(
            update, micro_tokens=4 * update.micro_tokens, logprob_chunk=4 * update.logprob_chunk
        ),
        mesh=MeshConfig(fsdp=128, expert=16),
    )
