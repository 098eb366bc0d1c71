"""Lanes: runs that are one program. They may differ by the seed and by scalars that are only computed
with; all else is the program's structure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from rlvr.config import ExperimentConfig, identity, to_dict

Scalars = Mapping[str, Any]  # field -> value, or array of one for each lane

# Fields that may be arrays wherever the config is read under jit.
COMPUTED = (
    "objective.clip_low",
    "objective.clip_high",
    "objective.max_weight",
    "objective.sapo_positive",
    "objective.sapo_negative",
    "objective.divergence",
    "objective.dro_beta",
    "objective.epsilon",
    "objective.kl_coef",
    "objective.correction.low",
    "objective.correction.high",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.max_grad_norm",
    "rollout.temperature",
)
# Fields of which something is switched on where they are not 0: that they are is structure, how much is not.
SWITCHING = (
    "objective.entropy_coef",
    "objective.entropy_target",
    "objective.entropy_step",
    "objective.entropy_max",
    "reward.length.linear",
    "reward.length.overlong_weight",
)


def split(config: ExperimentConfig) -> tuple[ExperimentConfig, dict[str, float]]:
    """Returns (the structure: a config whose scalars are 0 or 1, and whose seed and name are none; the scalars)."""
    scalars = {name: float(_read(config, name)) for name in (*COMPUTED, *SWITCHING)}
    structure = _replace(config, {name: float(value != 0) for name, value in scalars.items()})
    return dataclasses.replace(structure, seed=0, name=""), scalars


def insert(structure: ExperimentConfig, scalars: Scalars, names: tuple[str, ...] = COMPUTED) -> ExperimentConfig:
    """Returns the structure with the scalars of these names put in, which may be traced."""
    return _replace(structure, {name: scalars[name] for name in names})


def structure_key(structure: ExperimentConfig) -> str:
    """Returns a text that is the same for runs which can be lanes of one program."""
    return json.dumps(identity(to_dict(structure)), sort_keys=True)


def _read(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _replace(config: Any, changes: Mapping[str, Any]) -> Any:
    """Returns a dataclass with fields "a.b" replaced; nothing is shared that was changed."""
    nested: dict[str, dict[str, Any]] = {}
    own: dict[str, Any] = {}
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        if rest:
            nested.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    own |= {head: _replace(getattr(config, head), inner) for head, inner in nested.items()}
    return dataclasses.replace(config, **own)
