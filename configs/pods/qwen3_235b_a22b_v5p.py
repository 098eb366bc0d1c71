"""GRPO on Qwen3-235B-A22B, 512 v5p chips (accelerator type v5p-1024).

    python -m launch.compile --config=configs/pods/qwen3_235b_a22b_v5p.py --topology=v5p:8x8x8

Sixteen ways of experts: a chip decodes with eight experts of each layer and the whole of everything else.
"""

import dataclasses

from configs.pods import qwen3_30b_a3b_v5p, shapes
from rlvr.config import ExperimentConfig, RolloutConfig
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import MeshConfig


def get_config() -> ExperimentConfig:
    """Returns the config."""
    config = qwen3_30b_a3b_v5p.get_config()
    return dataclasses.replace(
        config,
        name="qwen3_235b_a22b_v5p",
        checkpoint="weights/qwen3-235b-a22b",
        policy=shapes.qwen3_235b_a22b(),
        engine=dataclasses.replace(config.engine, slots=8192, prefill_rows=512),
        rollout=RolloutConfig(prompts=512, group_size=16),
        update=UpdateConfig(row_tokens=7168, micro_tokens=512 * 14336, logprob_chunk=512 * 3072),
        mesh=MeshConfig(fsdp=32, expert=16),
    )
