"""How a parameter is laid out in a weight file and in our tree, and the assembly of the one from the other.

Weight files of every family hold matrices as [out, in], with the heads folded into `out` (or into `in` for
the output projection). Our tree unfolds the heads and puts the contracted dimension first. Letters as in
`rlvr.types`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlvr import errors
from rlvr.policy.config import PolicyConfig

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor that a file must hold.

    Attributes:
        name: its name in the file.
        path: where it goes in our tree, e.g. "layer_0/attention/query".
        shape: its shape in the file, outermost dimension first.
        convert: maps the array of `shape` to the array of our tree.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray]


def expand_names(config: PolicyConfig, names: Mapping[str, str]) -> tuple[StoredTensor, ...]:
    """Returns the tensors a file of a dense policy must hold.

    Args:
        config: the shape of the policy.
        names: our path -> the name in the file; "{i}" in both stands for the layer. "head/kernel" is left out
            where the head is tied.
    """
    tensors = []
    for path, name in names.items():
        if path == "head/kernel" and config.tied_head:
            continue
        shape, convert = _layout(path, config)
        for layer in range(config.layers) if "{i}" in path else (0,):
            tensors.append(StoredTensor(name.format(i=layer), path.format(i=layer), shape, convert))
    return tuple(tensors)


def assemble(
    where: str,
    tensors: Sequence[StoredTensor],
    shapes: Mapping[str, tuple[int, ...]],
    fetch: Callable[[StoredTensor], np.ndarray],
) -> Params:
    """Builds our parameter tree, float32, from the tensors of a file.

    Args:
        where: the file or folder, for messages.
        tensors: what must be there.
        shapes: what is there: name -> shape, outermost dimension first.
        fetch: reads one tensor, of its stated shape, in any float type.

    Raises:
        WeightsError: a tensor is missing, has another shape, is left over, or holds NaN or infinity. Names
            and shapes are all checked before anything is read.
    """
    for tensor in tensors:
        found = shapes.get(tensor.name)
        if found is None:
            hint = errors.nearest(tensor.name, shapes)
            raise errors.WeightsError(
                f"{where}: the tensor {tensor.name!r} of shape {list(tensor.shape)} is missing{hint}"
            )
        if found != tensor.shape:
            raise errors.WeightsError(
                f"{where}: the tensor {tensor.name!r} has shape {list(found)}; the metadata asks for "
                f"{list(tensor.shape)}"
            )
    left_over = sorted(set(shapes) - {tensor.name for tensor in tensors})
    if left_over:
        shown = ", ".join(f"{name!r} {list(shapes[name])}" for name in left_over[:4])
        more = f" and {len(left_over) - 4} more" if len(left_over) > 4 else ""
        raise errors.WeightsError(f"{where}: tensors that no parameter of this policy takes: {shown}{more}")
    params: Params = {}
    for tensor in tensors:
        # An owned copy, so that the tree outlives the memory map of the file.
        value = np.array(tensor.convert(fetch(tensor)), dtype=np.float32, order="C")
        if not np.isfinite(value).all():
            raise errors.WeightsError(f"{where}: the tensor {tensor.name!r} holds NaN or infinity")
        *parents, leaf = tensor.path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return params


def count_parameters(params: Params) -> int:
    """Returns how many numbers the tree holds."""
    return sum(count_parameters(v) if isinstance(v, dict) else int(v.size) for v in params.values())


def _layout(path: str, c: PolicyConfig) -> tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray]]:
    """Returns the shape in the file and the conversion of one path of our tree ("{i}" allowed)."""
    match path.removeprefix("layer_{i}/"):
        case "embed/table":
            return (c.vocab_size, c.dim), _keep
        case "head/kernel":
            return (c.vocab_size, c.dim), np.transpose
        case "attention_norm/scale" | "mlp_norm/scale" | "final_norm/scale":
            return (c.dim,), _keep
        case "attention/query":
            return (c.query_heads * c.head_size, c.dim), _unfold_rows(c.head_size)
        case "attention/key" | "attention/value":
            return (c.kv_heads * c.head_size, c.dim), _unfold_rows(c.head_size)
        case "attention/out":
            return (c.dim, c.query_heads * c.head_size), _unfold_columns(c.head_size)
        case "mlp/gate" | "mlp/up":
            return (c.hidden, c.dim), np.transpose
        case "mlp/down":
            return (c.dim, c.hidden), np.transpose
    raise KeyError(f"no layout for the parameter path {path!r}")


def _keep(stored: np.ndarray) -> np.ndarray:
    return stored


def _unfold_rows(head_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """[N h, D] -> [D, N, h]."""
    return lambda stored: stored.T.reshape(stored.shape[1], -1, head_size)


def _unfold_columns(head_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """[D, N h] -> [N, h, D]."""
    return lambda stored: stored.T.reshape(-1, head_size, stored.shape[0])
