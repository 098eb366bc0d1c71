"""The tiny experiment of the tests, for launches."""

from rlvr.config import ExperimentConfig
from tests.tiny import make_config


def get_config() -> ExperimentConfig:
    """Returns the config."""
    return make_config()
