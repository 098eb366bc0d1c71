"""Reads a policy from a GGUF file (quantized or not).

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The parsing and the dequantization are the
    `gguf` package's; what is done here is to check every name and shape and to bring the tensors into our
    layout.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from rlvr import errors
from rlvr.policy.config import PolicyConfig
from rlvr.text.metadata import Fields
from rlvr.weights import gguf_families, layout


class GgufPolicy(NamedTuple):
    """What a GGUF file holds.

    Attributes:
        config: the shape of the policy.
        params: our tree, float32.
        stored_types: the types of the tensors in the file, e.g. ("F32", "Q4_1").
        metadata: all keys and values of the file, those of the tokenizer among them.
    """

    config: PolicyConfig
    params: layout.Params
    stored_types: tuple[str, ...]
    metadata: dict[str, Any]


def read_gguf(path: Path) -> GgufPolicy:
    """Reads one GGUF file.

    Raises:
        WeightsError: the file is missing, truncated, corrupt, of another family, says something that our
            policy cannot do, or a tensor is missing, left over, misshapen, not finite or of a type that
            cannot be read.
    """
    where = str(path)
    reader = _open(path)
    metadata = {key: _value(field) for key, field in reader.fields.items()}
    fields = Fields(where, metadata)
    family = gguf_families.choose_family(fields)
    fields.require("split.count", 0, 1)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in stored.items()}
    embedding = family.names["embed/table"]
    if len(shapes.get(embedding, ())) != 2:
        raise errors.WeightsError(
            f"{where}: the tensor {embedding!r} is missing or has shape {list(shapes.get(embedding, ()))}; "
            "expected [vocabulary, width]"
        )
    config = family.read_config(fields, shapes[embedding][0], family.names["head/kernel"] not in stored)
    try:
        config.validate()
    except errors.ConfigError as error:
        raise errors.WeightsError(f"{where}: {error}") from error
    if family.rope_factors and shapes.get(gguf_families.ROPE_FACTORS) == (config.head_size // 2,):
        factors = _dequantize(where, stored[gguf_families.ROPE_FACTORS])
        config = dataclasses.replace(config, rope=gguf_families.read_rope_factors(where, factors, config))
        del shapes[gguf_families.ROPE_FACTORS]

    def fetch(tensor: layout.StoredTensor) -> np.ndarray:
        values = _dequantize(where, stored[tensor.name]).reshape(tensor.shape)
        if tensor.path.split("/", 1)[-1] in family.interleaved:
            return deinterleave(values, config.head_size)
        return values

    params = layout.assemble(where, layout.expand_names(config, family.names), shapes, fetch)
    types = sorted({tensor.tensor_type.name for tensor in reader.tensors})
    return GgufPolicy(config, params, tuple(types), metadata)


def deinterleave(rows: np.ndarray, head_size: int) -> np.ndarray:
    """Reorders the rows of each head from (2j, 2j+1) pairs to (j, j + h/2) pairs: [N h, D] -> [N h, D].

    GGUF files of some families keep the query and key projections in the order in which RoPE turns
    neighbouring rows together; ours, like Hugging Face's, turns row j of the first half of a head with row j
    of the second.
    """
    pairs = rows.reshape(-1, head_size // 2, 2, rows.shape[1])  # [N, h/2, 2, D]
    return pairs.swapaxes(1, 2).reshape(rows.shape)


class _Reader(gguf.GGUFReader):
    """The library's parser, which refuses an unknown type of tensor without naming the tensor."""

    def __init__(self, path: Path):
        self.path = path
        super().__init__(path)

    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        known = {int(kind) for kind in gguf.GGMLQuantizationType}
        for field in fields:
            _, name, _, _, kind, _ = field.parts
            if int(kind[0]) not in known:
                raise errors.WeightsError(
                    f"{self.path}: the tensor {bytes(name).decode('utf-8', errors='replace')!r} has the unknown type "
                    f"{int(kind[0])} (accepted: those of ggml up to {max(known)})"
                )
        super()._build_tensors(start_offs, fields)


def _open(path: Path) -> gguf.GGUFReader:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != struct.pack("<I", gguf.GGUF_MAGIC):
            raise errors.WeightsError(f"{path}: not a GGUF file (it starts with {magic!r}, not b'GGUF')")
        reader = _Reader(path)
    except OSError as error:
        raise errors.WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except errors.WeightsError:
        raise
    # What the parser raises when a length or an offset points outside the file.
    except (ValueError, LookupError, OverflowError, MemoryError) as error:
        size = path.stat().st_size
        raise errors.WeightsError(
            f"{path}: truncated or corrupt GGUF file of {size:,} bytes ({type(error).__name__}: {error})"
        ) from error
    if reader.byte_order != "I":
        raise errors.WeightsError(f"{path}: the file has the other byte order than this machine")
    return reader


def _value(field: gguf.ReaderField) -> Any:
    """Returns the value of a metadata field; a float32 as the shortest decimal that rounds to it."""
    value = field.contents()
    if isinstance(value, float) and field.types[0] == gguf.GGUFValueType.FLOAT32:
        return float(str(np.float32(value)))
    return value


def _dequantize(where: str, tensor: gguf.ReaderTensor) -> np.ndarray:
    try:
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise errors.WeightsError(
            f"{where}: the tensor {tensor.name!r} has type {tensor.tensor_type.name}, which cannot be read"
        ) from error
