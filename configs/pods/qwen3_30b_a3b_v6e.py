"""GRPO on Qwen3-30B-A3B, 64 v6e chips: as on v5p, with a third of the memory, so that a chip decodes with an eighth of
the experts.

python -m launch.compile --config=configs/pods/qwen3_30b_a3b_v6e.py --topology=v6e:8x8
"""

import dataclasses

from configs.pods import qwen3_30b_a3b_v5p
from rlvr.config import ExperimentConfig
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import MeshConfig


def get_config() -> ExperimentConfig:
    """Returns the config."""
    config = qwen3_30b_a3b_v5p.get_config()
    return dataclasses.replace(
        config,
        name="qwen3_30b_a3b_v6e",
        engine=dataclasses.replace(config.engine, slots=1024),
        update=UpdateConfig(row_tokens=7168, micro_tokens=64 * 7168, logprob_chunk=64 * 1536),
        mesh=MeshConfig(fsdp=8, expert=8),
    )
