"""SmolLM2-135M-Instruct as a mixture of experts, with its router's choices replayed in training.

bash scripts/fetch_smollm2.sh weights/smollm2-135m-instruct
python -m launch.upcycle --checkpoint=weights/smollm2-135m-instruct --output=weights/smollm2-upcycled --every=6
python -m launch.train --config=configs/smollm2_upcycled.py --workdir=runs/smollm2_upcycled
    --config.objective.routing=live      (without replay)
"""

from configs import smollm2_arithmetic
from rlvr.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    """Returns the config."""
    config = smollm2_arithmetic.get_config()
    config.name = "smollm2_upcycled"
    config.checkpoint = "weights/smollm2-upcycled"
    config.steps = 30
    config.objective.routing = "rollout"
    config.objective.z_coef = 1e-3
    config.update.minibatches = 2  # the second update meets choices that the first may have changed
    for task in config.data.tasks:
        task.eval_size = 50
    config.rollout.prompts, config.rollout.group_size = 4, 4
    config.checkpoints.interval = 30
    return config
