"""Hugging Face folders: config.json, and one or several safetensors files with their index."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rlvr import errors
from rlvr.policy.config import PolicyConfig
from rlvr.text.metadata import Fields, read_json
from rlvr.weights import families, layout, mxfp4

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_FILE = "model-{:05d}-of-{:05d}.safetensors"
STORED_TYPES = ("F32", "F16", "BF16")
DTYPES: Mapping[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# Rows of the embedding that are compared with the head at a time.
_COMPARED_ROWS = 4096


class SafetensorsPolicy(NamedTuple):
    """What a folder holds.

    Attributes:
        config: the shape of the policy.
        params: our tree, as `place` made it of float32.
        stored_types: the types of the tensors in the files, e.g. ("BF16",).
    """

    config: PolicyConfig
    params: layout.Params
    stored_types: tuple[str, ...]


class _Entry(NamedTuple):
    """A tensor that a folder offers; those in MXFP4 by the name and shape of what they stand for."""

    file: Path
    shape: tuple[int, ...]
    type: str


def read_folder_config(folder: Path) -> PolicyConfig:
    """Reads the config.json of a folder; raises WeightsError as `families.read_config` does."""
    return families.read_config(Fields(str(folder / "config.json"), read_json(folder / "config.json")))


def read_safetensors(
    folder: Path, place: Callable[[str, np.ndarray], Any] = lambda path, value: value
) -> SafetensorsPolicy:
    """Reads the config and the weights of a folder, one parameter after the other.

    Args:
        folder: a Hugging Face folder.
        place: see `layout.assemble`.

    Raises:
        WeightsError: a file is missing, truncated or corrupt, the config is of another family or says
            something that our policy cannot do, or a tensor is missing, left over, misshapen, not finite or
            of another type than F32, F16 and BF16 (and MXFP4 for experts that say so).
    """
    config = read_folder_config(folder)
    family = families.FAMILIES[config.family]
    entries = _read_headers(folder)
    if read_json(folder / "config.json").get("quantization_config") is not None:
        _unite_mxfp4(entries)
    if config.tied_head:
        _drop_tied_copy(folder, family, entries)
    for name, entry in entries.items():
        if entry.type not in (*STORED_TYPES, "MXFP4"):
            raise errors.WeightsError(
                f"{entry.file}: the tensor {name!r} has type {entry.type} (accepted: {', '.join(STORED_TYPES)})"
            )
    reader = _Reader(entries)
    with reader:
        params = layout.assemble(
            str(folder),
            layout.expand_names(config, family.names),
            {name: entry.shape for name, entry in entries.items()},
            reader.fetch,
            place,
        )
    return SafetensorsPolicy(config, params, tuple(sorted({entry.type for entry in entries.values()})))


class _Reader:
    """Reads tensors; a file stays mapped for the time of one parameter only, so that its pages do not pile up."""

    def __init__(self, entries: Mapping[str, _Entry]):
        self._entries = entries
        self._path = ""
        self._stack = contextlib.ExitStack()
        self._handles: dict[Path, Any] = {}

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._handles.clear()
        self._stack.close()

    def fetch(self, tensor: layout.StoredTensor) -> np.ndarray:
        """Returns columns `entry.part` of one tensor."""
        if tensor.path != self._path:
            self.__exit__()
            self._path = tensor.path
        entry = self._entries[tensor.name]
        if entry.type != "MXFP4":
            return self._get(tensor.name, entry.file)[..., tensor.entry.part]
        blocks = self._get(tensor.name + mxfp4.BLOCKS, entry.file)[:, tensor.entry.part]
        scales = self._get(tensor.name + mxfp4.SCALES, entry.file)[:, tensor.entry.part]
        return mxfp4.dequantize(blocks, scales)

    def _get(self, name: str, file: Path) -> np.ndarray:
        try:
            if file not in self._handles:
                self._handles[file] = self._stack.enter_context(safe_open(file, framework="numpy"))
            return self._handles[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise errors.WeightsError(f"{file}: the tensor {name!r} cannot be read ({error})") from error


def _read_headers(folder: Path) -> dict[str, _Entry]:
    """Returns every tensor of the file or the shards by name."""
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
        for name, entry in _read_header(file):
            if name in entries:
                raise errors.WeightsError(f"{file}: the tensor {name!r} is also in {entries[name].file.name}")
            entries[name] = entry
    for name, shard in weight_map.items():
        if name not in entries or entries[name].file.name != shard:
            raise errors.WeightsError(
                f"{folder / shard}: the tensor {name!r} is missing, though {INDEX_FILE} says it is there"
            )
    # Old exports kept a constant that RoPE computes.
    return {name: entry for name, entry in entries.items() if not name.endswith(".rotary_emb.inv_freq")}


def _read_header(file: Path) -> Iterator[tuple[str, _Entry]]:
    try:
        with safe_open(file, framework="numpy") as handle:
            for name in handle.keys():
                view = handle.get_slice(name)
                yield name, _Entry(file, tuple(view.get_shape()), view.get_dtype())
    except (SafetensorError, OSError) as error:
        raise errors.WeightsError(f"{file}: truncated or corrupt safetensors file ({error})") from error


def _unite_mxfp4(entries: dict[str, _Entry]) -> None:
    """Replaces each pair of blocks and scales by the tensor that they stand for."""
    for name in [name for name in entries if name.endswith(mxfp4.BLOCKS)]:
        base = name.removesuffix(mxfp4.BLOCKS)
        blocks, scales = entries[name], entries.get(base + mxfp4.SCALES)
        if scales is None:
            raise errors.WeightsError(f"{blocks.file}: the tensor {base + mxfp4.SCALES!r} is missing")
        half = (*blocks.shape[:-1], mxfp4.BLOCK // 2)
        if len(half) != 4 or blocks.shape != half or scales.shape != half[:-1]:
            raise errors.WeightsError(
                f"{blocks.file}: the tensors {name!r} {list(blocks.shape)} and {base + mxfp4.SCALES!r} "
                f"{list(scales.shape)} do not fit; expected [E, out, in/{mxfp4.BLOCK}, {mxfp4.BLOCK // 2}] and the "
                "same without the last dimension"
            )
        if {blocks.type, scales.type} != {"U8"} or blocks.file != scales.file:
            raise errors.WeightsError(f"{blocks.file}: {name!r} and its scales must be U8 tensors of one file")
        del entries[name], entries[base + mxfp4.SCALES]
        entries[base] = _Entry(blocks.file, mxfp4.unpacked_shape(blocks.shape), "MXFP4")


def _drop_tied_copy(folder: Path, family: families.Family, entries: dict[str, _Entry]) -> None:
    """Removes the head that some exports store although it is tied; raises WeightsError if it differs."""
    head, table = family.names["head/kernel"], family.names["embed/table"]
    if not isinstance(head, str) or not isinstance(table, str) or head not in entries or table not in entries:
        return
    same = entries[head].shape == entries[table].shape
    with safe_open(entries[head].file, "numpy") as a, safe_open(entries[table].file, "numpy") as b:
        count = entries[head].shape[0]
        for row in range(0, count if same else 0, _COMPARED_ROWS):
            rows = slice(row, min(row + _COMPARED_ROWS, count))
            same = same and np.array_equal(a.get_slice(head)[rows], b.get_slice(table)[rows])
    if not same:
        raise errors.WeightsError(
            f"{folder}: config.json has tie_word_embeddings=true, but {head!r} differs from {table!r}"
        )
    del entries[head]


def write_safetensors(
    folder: Path,
    tensors: Mapping[str, list[layout.StoredTensor]],
    read: Callable[[str], np.ndarray],
    dtype: str,
    shard_bytes: int,
) -> None:
    """Writes weights, one shard after the other.

    Args:
        folder: exists.
        tensors: what to write: name -> the pieces of the tensor.
        read: returns a parameter by its path, float32.
        dtype: key of `DTYPES`.
        shard_bytes: a file holds at most this much, or one tensor.

    Raises:
        WeightsError: a value is not finite in `dtype`, or a file cannot be written.
    """
    sizes = {name: int(np.prod(pieces[0].shape)) * np.dtype(DTYPES[dtype]).itemsize for name, pieces in tensors.items()}
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE_FILE if len(shards) == 1 else SHARD_FILE.format(number, len(shards))
        values = {name: layout.pack(tensors[name], read, DTYPES[dtype]) for name in names}
        (folder / file).touch()
        mode = (folder / file).stat().st_mode
        try:
            save_file(values, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise errors.WeightsError(f"{folder / file} cannot be written: {error}") from error
        (folder / file).chmod(mode)  # the library makes it readable by its owner only
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
