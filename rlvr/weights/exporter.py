"""Writes a policy as a Hugging Face folder, which transformers and what builds on it load."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlvr import errors, partition
from rlvr.policy.config import PolicyConfig
from rlvr.policy.transformer import Params
from rlvr.text.tokenizer import GENERATION_FILE, Tokenizer
from rlvr.weights import families, layout, safetensors

SHARD_BYTES = 5 * 10**9


def export_policy(
    folder: Path,
    config: PolicyConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    family: str = "",
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json, the weights, the tokenizer and generation_config.json; appears whole or not at all.

    Args:
        folder: may exist if empty.
        config, params: of the policy.
        tokenizer: its files, and the chat template, go along.
        family: key of `families.FAMILIES` to write it as; "" for the one it came from.
        dtype: key of `safetensors.DTYPES`, of the stored weights.
        shard_bytes: a weight file holds at most this much, or one tensor.

    Raises:
        WeightsError: the folder is not empty or cannot be written, no family is known, the family cannot express the
            policy, or a parameter is not finite in `dtype`.
    """
    errors.check_new_folder(folder)
    values = describe(config, family)
    described = values | {
        "dtype": dtype,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(tokenizer.stop_ids),
        # Not the tokenizer's: a row of the embedding that transformers takes for padding gets no gradient there.
        "pad_token_id": None,
    }
    expanded = layout.expand_names(config, families.FAMILIES[values["model_type"]].names)
    tensors = layout.group(sorted(expanded, key=_layer), lambda tensor: tensor.name)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_json(partial / "config.json", described)
        safetensors.write_safetensors(partial, tensors, _reader(params), dtype, shard_bytes)
        tokenizer.save(partial)
        generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.stop_ids)}
        _write_json(partial / GENERATION_FILE, generation | {"pad_token_id": tokenizer.pad_id})
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise errors.WeightsError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def describe(config: PolicyConfig, family: str) -> dict[str, Any]:
    """Returns the policy's part of config.json; arguments and errors as of `export_policy`."""
    if not (family or config.family):
        raise errors.WeightsError(
            "policy.family='': the policy does not say what family it is of; name the one to write it as "
            f"(accepted: {', '.join(families.FAMILIES)})"
        )
    return families.write_config(config, family or config.family)


def _reader(params: Params) -> Callable[[str], np.ndarray]:
    """Returns a function from a path to the parameter on the host, which remembers the last: many tensors may share
    it."""
    flat = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    last: dict[str, np.ndarray] = {}

    def read(path: str) -> np.ndarray:
        if path not in last:
            last.clear()
            value = flat[path]
            last[path] = np.asarray(partition.host_value(value) if isinstance(value, jax.Array) else value, np.float32)
        return last[path]

    return read


def _layer(tensor: layout.StoredTensor) -> int:
    """Returns the layer of a tensor, -1 where it has none, so that a shard holds whole layers."""
    found = re.match(r"layer_(\d+)/", tensor.path)
    return int(found[1]) if found else -1


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
