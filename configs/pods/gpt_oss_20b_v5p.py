"""GRPO on gpt-oss-20b, 32 v5p chips (accelerator type v5p-64).

python -m launch.compile --config=configs/pods/gpt_oss_20b_v5p.py --topology=v5p:2x4x4
"""

from configs.pods import shapes
from rlvr.config import ExperimentConfig, RolloutConfig
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import MeshConfig
from rlvr.rollout.config import EngineConfig


def get_config() -> ExperimentConfig:
    """Returns the config."""
    return ExperimentConfig(
        name="gpt_oss_20b_v5p",
        checkpoint="weights/gpt-oss-20b",
        policy=shapes.gpt_oss_20b(),
        data=shapes.gsm8k(),
        engine=EngineConfig(
            slots=1024, max_prompt_tokens=1024, max_new_tokens=3072, prefill_rows=32, decode_steps=16, page_tokens=128
        ),
        rollout=RolloutConfig(prompts=64, group_size=16),
        update=UpdateConfig(row_tokens=4096, micro_tokens=32 * 16384, logprob_chunk=32 * 3072),
        mesh=MeshConfig(fsdp=8, expert=4),
    )
