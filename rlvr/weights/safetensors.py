"""Reads a policy from a Hugging Face folder: config.json and one or several safetensors files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (importing it teaches numpy the type bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open

from rlvr import errors
from rlvr.policy.config import PolicyConfig
from rlvr.text.metadata import Fields, read_json
from rlvr.weights import families, layout

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
STORED_TYPES = ("F32", "F16", "BF16")


class SafetensorsPolicy(NamedTuple):
    """What a folder holds.

    Attributes:
        config: the shape of the policy.
        params: our tree, float32.
        stored_types: the types of the tensors in the files, e.g. ("BF16",).
    """

    config: PolicyConfig
    params: layout.Params
    stored_types: tuple[str, ...]


class _Entry(NamedTuple):
    file: Path
    handle: Any
    shape: tuple[int, ...]
    type: str


def read_safetensors(folder: Path) -> SafetensorsPolicy:
    """Reads the config and the weights of a folder.

    Raises:
        WeightsError: a file is missing, truncated or corrupt, the config is of another family or says
            something that our policy cannot do, or a tensor is missing, left over, misshapen, not finite or
            of another type than F32, F16 and BF16.
    """
    fields = Fields(str(folder / "config.json"), read_json(folder / "config.json"))
    family = families.choose_family(fields, "model_type")
    architectures = fields.values.get("architectures")
    if architectures is not None and (
        not isinstance(architectures, list) or not any(a in family.architectures for a in architectures)
    ):
        raise fields.error("architectures", f"is not supported (accepted: {', '.join(family.architectures)})")
    config = family.read_json_config(fields)
    with contextlib.ExitStack() as stack:
        entries = _open_all(folder, stack)
        if config.tied_head:
            _drop_tied_copy(folder, family, entries)
        for name, entry in entries.items():
            if entry.type not in STORED_TYPES:
                raise errors.WeightsError(
                    f"{entry.file}: the tensor {name!r} has type {entry.type} (accepted: {', '.join(STORED_TYPES)})"
                )
        params = layout.assemble(
            str(folder),
            layout.expand_names(config, family.safetensors_names),
            {name: entry.shape for name, entry in entries.items()},
            lambda tensor: _fetch(tensor.name, entries[tensor.name]),
        )
    return SafetensorsPolicy(config, params, tuple(sorted({entry.type for entry in entries.values()})))


def _open_all(folder: Path, stack: contextlib.ExitStack) -> dict[str, _Entry]:
    """Opens the file or the shards and returns every tensor's entry by name; reads headers only."""
    weight_map: dict[str, str] = {}
    if (folder / INDEX_FILE).exists():
        found = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise errors.WeightsError(f"{folder / INDEX_FILE}: the field weight_map is missing or empty")
        weight_map = found
        names = sorted(set(weight_map.values()))
    elif (folder / SINGLE_FILE).exists():
        names = [SINGLE_FILE]
    else:
        raise errors.WeightsError(f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is there")
    entries: dict[str, _Entry] = {}
    for file in (folder / name for name in names):
        if not file.is_file():
            raise errors.WeightsError(f"{file}: the shard is missing (named by {INDEX_FILE})")
        try:
            handle = stack.enter_context(safe_open(file, framework="numpy"))
            for name in handle.keys():
                view = handle.get_slice(name)
                entry = _Entry(file, handle, tuple(view.get_shape()), view.get_dtype())
                if name in entries:
                    other = entries[name].file.name
                    raise errors.WeightsError(f"{file}: the tensor {name!r} is also in {other}")
                entries[name] = entry
        except (SafetensorError, OSError) as error:
            raise errors.WeightsError(f"{file}: truncated or corrupt safetensors file ({error})") from error
    for name, shard in weight_map.items():
        if name not in entries or entries[name].file.name != shard:
            raise errors.WeightsError(
                f"{folder / shard}: the tensor {name!r} is missing, though {INDEX_FILE} says it is there"
            )
    # Old exports kept a constant that RoPE computes.
    return {name: entry for name, entry in entries.items() if not name.endswith(".rotary_emb.inv_freq")}


def _drop_tied_copy(folder: Path, family: families.Family, entries: dict[str, _Entry]) -> None:
    """Removes the head that some exports store although it is tied; raises WeightsError if it differs."""
    head, table = family.safetensors_names["head/kernel"], family.safetensors_names["embed/table"]
    if head not in entries or table not in entries:
        return
    if not np.array_equal(_fetch(head, entries[head]), _fetch(table, entries[table])):
        raise errors.WeightsError(
            f"{folder}: config.json has tie_word_embeddings=true, but {head!r} differs from {table!r}"
        )
    del entries[head]


def _fetch(name: str, entry: _Entry) -> np.ndarray:
    try:
        return entry.handle.get_tensor(name).astype(np.float32)
    except SafetensorError as error:
        raise errors.WeightsError(f"{entry.file}: the tensor {name!r} cannot be read ({error})") from error
