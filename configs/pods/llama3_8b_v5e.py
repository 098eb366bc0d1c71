"""GRPO on Llama 3 8B, 64 v5e chips.

    python -m launch.compile --config=configs/pods/llama3_8b_v5e.py --topology=v5e:8x8
    python -m launch.tpu run --name=llama --zone=ZONE --topology=v5e:8x8 --workdir=gs://BUCKET/llama \
        -- --config=configs/pods/llama3_8b_v5e.py --config.checkpoint=FOLDER

Heads, hidden widths and vocabulary are split over 4 chips, so that a chip decodes with a quarter of the weights. The
head's loss is one chunk: with several, the head is gathered and its gradient reduced for each. A chip's memory has room
for the results of the layers' products, which are not computed again.
"""

from configs.pods import shapes
from rlvr.config import ExperimentConfig, RolloutConfig
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import MeshConfig
from rlvr.rollout.config import EngineConfig


def get_config() -> ExperimentConfig:
    """Returns the config."""
    return ExperimentConfig(
        name="llama3_8b_v5e",
        checkpoint="weights/llama3-8b-instruct",
        policy=shapes.llama3_8b(),
        data=shapes.gsm8k(),
        engine=EngineConfig(
            slots=512, max_prompt_tokens=512, max_new_tokens=1536, prefill_rows=16, decode_steps=16, page_tokens=128
        ),
        rollout=RolloutConfig(prompts=128, group_size=8),
        update=UpdateConfig(row_tokens=3584, micro_tokens=16 * 3584, logprob_chunk=16 * 3072),
        mesh=MeshConfig(fsdp=16, tensor=4),
    )
