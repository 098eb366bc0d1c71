"""Warm starts that runs of a grid share: whoever comes first makes one, and the others begin where it ended."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from rlvr import checkpoint
from rlvr.config import ExperimentConfig, identity, is_within, to_dict
from rlvr.learner.learner import Learner
from rlvr.policy.transformer import Params

# What a warm start does not depend on. Whatever else there is makes another one, also how it is laid out on devices.
_LATER = (
    "name",
    "steps",
    "sample_interval",
    "curriculum",
    "verifiers",
    "reward",
    "objective",
    "distill",
    "optimizer",
    "critic",
    "evaluation",
    "rollback",
    *(f"rollout.{name}" for name in ("prompts", "group_size", "staleness", "dynamic_rounds", "oversample")),
    *(f"update.{name}" for name in ("minibatches", "epochs")),
)


def make_key(config: ExperimentConfig) -> str:
    """Returns a text that is the same for configs whose warm start is the same."""
    fields = to_dict(config)
    wanted = {name: value for name, value in identity(fields).items() if not is_within(name, _LATER)}
    return json.dumps([wanted, fields["mesh"]], sort_keys=True)


def shared_folder(config: ExperimentConfig) -> Path | None:
    """Returns where the policy that a run's RL begins with is shared; None if it is not."""
    if not (config.warm_start.shared and config.warm_start.steps) or jax.process_count() > 1:
        return None
    return Path(config.warm_start.shared) / hashlib.sha256(make_key(config).encode()).hexdigest()[:16]


def begin(config: ExperimentConfig, learner: Learner, initial: Callable[[], Params]) -> tuple[int, Params]:
    """Returns (the step, the trained parameters) that a run begins with: after its warm start, if that is shared.

    Args:
        learner: of the warm start.
        initial: returns the parameters before it.
    """
    folder = shared_folder(config)
    if folder is None or not folder.exists():
        return 0, initial()
    return config.warm_start.steps, checkpoint.load_tree(folder, learner.abstract().params)


def keep_start(config: ExperimentConfig, start: Path, params: Params) -> None:
    """Writes the trained parameters at the start of the RL to a run's `start/`, and shares them."""
    if not start.exists():
        checkpoint.save_params(start, params)
    folder = shared_folder(config)
    if folder is not None and not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process of this number that was killed here
        shutil.copytree(start, partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(partial)  # another run was first, with the same numbers
