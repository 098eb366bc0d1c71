"""smollm2_arithmetic with adapters of rank 16 on every projection; everything else is frozen.

bash scripts/fetch_smollm2.sh weights/smollm2-135m-instruct
python -m launch.train --config=configs/smollm2_lora.py --workdir=runs/smollm2_lora
python -m launch.export_adapter --checkpoint=runs/smollm2_lora --output=runs/adapter    (for PEFT)
"""

from configs import smollm2_arithmetic
from rlvr.config import ExperimentConfig
from rlvr.policy.lora import LoraConfig


def get_config() -> ExperimentConfig:
    """Returns the config."""
    config = smollm2_arithmetic.get_config()
    config.name = "smollm2_lora"
    config.lora = LoraConfig(rank=16, alpha=32.0)
    config.optimizer.learning_rate = 2e-4
    return config
