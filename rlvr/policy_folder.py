"""Policies as folders.

A policy folder holds `policy.json`, `tokenizer/` and `params/`. A run's workdir holds the first two as well, so
`load_policy` takes either. What is saved of a run with adapters is the adapters; `lora.json` tells of the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from rlvr import adaptation, errors, partition
from rlvr.adaptation import Adaptation
from rlvr.checkpoint import first_line, load_tree, save_params, saved_steps
from rlvr.policy import lora
from rlvr.policy.config import PolicyConfig, RopeConfig
from rlvr.policy.transformer import Params, Policy
from rlvr.text.tokenizer import Tokenizer, load_tokenizer


def save_policy(folder: Path, config: PolicyConfig, params: Params, tokenizer: Tokenizer) -> None:
    """Writes a policy folder; it appears whole or not at all.

    Raises:
        WeightsError: the folder exists and is not empty, or cannot be written.
    """
    errors.check_new_folder(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_params(partial / "params", params)
        describe_policy(partial, config, tokenizer)
    except (OSError, ValueError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise errors.WeightsError(f"{folder} cannot be written: {first_line(error)}") from error
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


def describe_policy(folder: Path, config: PolicyConfig, tokenizer: Tokenizer) -> None:
    """Writes `policy.json` and `tokenizer/`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer")
    (folder / "policy.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


class LoadedPolicy(NamedTuple):
    """A policy read from a folder."""

    policy: Policy
    params: Params
    tokenizer: Tokenizer


def load_policy(folder: Path, mesh: Mesh | None = None, step: int | None = None) -> LoadedPolicy:
    """Reads a policy folder, or a checkpoint of a run's workdir; adapters are merged into their base.

    Args:
        folder: either of them.
        mesh: the parameters are sharded over it; None means on the default device.
        step: which checkpoint; None means the newest.

    Raises:
        WeightsError: something is missing, damaged or no longer what it was; it is named.
    """
    config = read_policy_config(folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    return LoadedPolicy(Policy(config), load_merged_params(folder, config, mesh, step), tokenizer)


def load_merged_params(folder: Path, config: PolicyConfig, mesh: Mesh | None, step: int | None = None) -> Params:
    """Reads the parameters of `load_policy`, given its config."""
    adapted = adaptation.read(folder)
    if adapted is None:
        return load_params(find_params(folder, step), config, mesh)
    adapters = load_adapters(folder, adapted, config, mesh, step)
    if not Path(adapted.base).is_dir():
        raise errors.WeightsError(
            f"{folder} holds adapters of the policy at {adapted.base}, which is not there: put it back, or write "
            f"where it is into {folder / adaptation.FILE}"
        )
    base = load_merged_params(Path(adapted.base), config, mesh)
    adaptation.check_base(folder, adapted, base)
    shardings = jax.tree.map(lambda x: x.sharding, base)
    merge = jax.jit(functools.partial(lora.merge, alpha=adapted.lora.alpha), out_shardings=shardings, donate_argnums=0)
    merged: Params = merge(base, adapters)
    return merged


def load_params(folder: Path, config: PolicyConfig, mesh: Mesh | None) -> Params:
    """Reads all parameters of a policy, sharded over `mesh` (or on the default device); see `load_tree`."""
    policy = Policy(config)
    return load_tree(folder, _placed(policy.abstract_params(), policy.logical_axes(), mesh))


def load_adapters(
    folder: Path, adapted: Adaptation, config: PolicyConfig, mesh: Mesh | None, step: int | None = None
) -> Params:
    """Reads the adapters of a checkpoint of a run's workdir, `adapted` being what its `lora.json` says."""
    policy = Policy(config)
    shapes = jax.eval_shape(lambda key: lora.init_adapters(adapted.lora, policy, key), jax.random.key(0))
    return load_tree(find_params(folder, step), _placed(shapes, lora.logical_axes(adapted.lora, policy), mesh))


def find_params(folder: Path, step: int | None = None) -> Path:
    """Returns where the parameters of a policy folder, or of a checkpoint of a run's workdir, are.

    Args:
        folder: either of them.
        step: which checkpoint; None means the newest.

    Raises:
        WeightsError: the folder has none, or not the one of `step`.
    """
    if (folder / "params").exists() and step is None:
        return folder / "params"
    steps = saved_steps(folder)
    if step is not None and step not in steps:
        raise errors.WeightsError(f"{folder} has no checkpoint of step {step} (it has: {steps or 'none'})")
    if not steps:
        raise errors.WeightsError(f"{folder} has neither params/ nor checkpoints/<step>: nothing to load")
    return folder / "checkpoints" / str(steps[-1] if step is None else step) / "params"


def read_policy_config(folder: Path) -> PolicyConfig:
    """Reads `policy.json` of a policy folder or a run's workdir.

    Raises:
        WeightsError: the file is missing, is not JSON, or has unknown or missing fields.
    """
    path = folder / "policy.json"
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise errors.WeightsError(
            f"{folder} holds no policy: {path} is missing (accepted: a folder made by launch/import_weights.py, "
            "or the workdir of a run)"
        ) from error
    except json.JSONDecodeError as error:
        raise errors.WeightsError(f"{path} is not JSON: {error}") from error
    names = {field.name for field in dataclasses.fields(PolicyConfig)}
    if not isinstance(fields, dict):
        raise errors.WeightsError(f"{path}: holds a JSON {type(fields).__name__}, expected an object")
    if fields.keys() != names:
        wrong = sorted(names.symmetric_difference(fields))
        raise errors.WeightsError(
            f"{path}: the fields {', '.join(wrong)} are missing or unknown: another version wrote it; import the "
            "weights again"
        )
    try:
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        config = PolicyConfig(**{**fields, "rope": RopeConfig(**fields["rope"])})
        config.validate()
    except (TypeError, errors.ConfigError) as error:
        raise errors.WeightsError(f"{path}: {error}") from error
    return config


def _placed(shapes: Params, axes: Params, mesh: Mesh | None) -> Params:
    """Returns the shapes with their shardings."""
    if mesh is None:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=one), shapes)
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        partition.shardings(mesh, axes),
    )
