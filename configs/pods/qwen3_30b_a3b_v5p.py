"""GRPO on Qwen3-30B-A3B, 64 v5p chips (accelerator type v5p-128).

    python -m launch.compile --config=configs/pods/qwen3_30b_a3b_v5p.py --topology=v5p:4x4x4

Four ways of experts, sixteen of parameters: a mesh along the sides of the torus, and four rows a chip, each of a
prompt and two completions, so that an expert has many rows.
"""

from configs.pods import shapes
from rlvr.config import ExperimentConfig, RolloutConfig
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import MeshConfig
from rlvr.rollout.config import EngineConfig


def get_config() -> ExperimentConfig:
    """Returns the config."""
    return ExperimentConfig(
        name="qwen3_30b_a3b_v5p",
        checkpoint="weights/qwen3-30b-a3b",
        policy=shapes.qwen3_30b_a3b(),
        data=shapes.gsm8k(),
        engine=EngineConfig(
            slots=2048, max_prompt_tokens=1024, max_new_tokens=3072, prefill_rows=64, decode_steps=16, page_tokens=128
        ),
        rollout=RolloutConfig(prompts=128, group_size=16),
        update=UpdateConfig(row_tokens=7168, micro_tokens=64 * 28672, logprob_chunk=64 * 12288),
        mesh=MeshConfig(fsdp=16, expert=4),
    )
