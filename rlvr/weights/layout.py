"""How parameters are laid out in weight files and in our tree: one description, read in both directions.

Weight files hold matrices as [out, in], with the heads folded into `out` (or into `in` for the output projection).
Our tree unfolds the heads, puts the contracted dimensions first and stacks the experts. A family's name map says where
a file keeps each parameter; everything else follows from the shape of the parameter. Letters as in `rlvr.types`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlvr import errors
from rlvr.policy.config import PolicyConfig
from rlvr.policy.parameters import BIAS
from rlvr.policy.transformer import Policy

Params = dict[str, Any]

WHOLE = slice(None)


class Entry(NamedTuple):
    """Where a file keeps a parameter, where a plain name does not say it.

    Attributes:
        name: the name in the file; "{i}" stands for the layer and "{e}" for the expert. Experts without "{e}" are
            stored as one stacked tensor.
        part: which columns (last dimension) of the stored tensor the parameter is; the others belong to another one.
        transposed: whether a matrix is stored as [out, in]; else as [in, out].
        offset: the parameter is what is stored plus this (Gemma's norms store w and scale by 1 + w).
    """

    name: str
    part: slice = WHOLE
    transposed: bool = True
    offset: float = 0.0


Names = Mapping[str, str | Entry]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor that a file must hold, and the parameter, or the expert of one, that it holds.

    Attributes:
        name: its name in the file.
        path: where it goes in our tree, e.g. "layer_0/attention/query".
        shape: its whole shape in the file, outermost dimension first.
        param_shape: the shape of the whole parameter.
        expert: which expert of the parameter it holds; None for all of it.
        inputs: how many dimensions of the parameter (of one expert) are contracted; 0 for what is no matrix.
        entry: how it is stored.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    param_shape: tuple[int, ...]
    expert: int | None
    inputs: int
    entry: Entry

    def view(self, value: np.ndarray) -> np.ndarray:
        """Returns a view of the whole parameter that has the layout of the file: columns `entry.part` of `shape`.

        Reading writes into it and writing reads from it: there is no second description of the way back.
        """
        if self.expert is not None:
            value = value[self.expert]
        if self.path == EMBEDDING:
            return value
        lead = value.shape[:1] if self.expert is None and is_stacked(self.path) else ()
        rest = value.shape[len(lead) :]
        if not self.inputs:
            return value.reshape(*lead, -1)
        matrix = value.reshape(*lead, math.prod(rest[: self.inputs]), -1)
        return matrix.swapaxes(-1, -2) if self.entry.transposed else matrix


EMBEDDING = "embed/table"


def is_stacked(path: str) -> bool:
    """Returns whether the first dimension of a parameter is that of the experts."""
    return re.search(r"/moe/(gate|up|down)(_bias)?$", path) is not None


def expand_names(config: PolicyConfig, names: Names) -> tuple[StoredTensor, ...]:
    """Returns the tensors that a file of a policy must hold, those of one parameter after each other.

    Args:
        config: the shape of the policy.
        names: our path, "{i}" for the layer -> where the file keeps it. Parameters that the policy does not have are
            passed over.

    Raises:
        WeightsError: the policy has a parameter that `names` has no place for.
    """
    shapes = param_shapes(config)
    tensors: list[StoredTensor] = []
    for template, found in names.items():
        entry = Entry(found) if isinstance(found, str) else found
        for layer in range(config.layers) if "{i}" in template else (None,):
            path = template.format(i=layer)
            if path in shapes:
                tensors += _expand(path, shapes.pop(path), entry, layer)
    for path, shape in shapes.items():
        raise errors.WeightsError(f"the family has no place for the parameter {path} {list(shape)}")
    return tuple(tensors)


def _expand(path: str, shape: tuple[int, ...], entry: Entry, layer: int | None) -> list[StoredTensor]:
    per_expert = "{e}" in entry.name
    stored, inputs = _stored_shape(path, shape, per_expert, entry), _inputs(path)
    return [
        StoredTensor(entry.name.format(i=layer, e=expert), path, stored, shape, expert, inputs, entry)
        for expert in (range(shape[0]) if per_expert else (None,))
    ]


def param_shapes(config: PolicyConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a policy by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(Policy(config).abstract_params())
    return {"/".join(key.key for key in path): tuple(leaf.shape) for path, leaf in leaves}


def assemble(
    where: str,
    tensors: Sequence[StoredTensor],
    shapes: Mapping[str, tuple[int, ...]],
    fetch: Callable[[StoredTensor], np.ndarray],
    place: Callable[[str, np.ndarray], Any] = lambda path, value: value,
) -> Params:
    """Builds our parameter tree from the tensors of a file, one parameter after the other.

    Args:
        where: the file or folder, for messages.
        tensors: what must be there.
        shapes: what is there: name -> shape, outermost dimension first.
        fetch: reads columns `entry.part` of one tensor, in any float type.
        place: puts a finished parameter (path, float32) where it is to stay; what it returns goes into the tree.

    Raises:
        WeightsError: a tensor is missing, has another shape, is left over, or holds NaN or infinity. Names
            and shapes are all checked before anything is read.
    """
    check(where, tensors, shapes)
    params: Params = {}
    for path, pieces in group(tensors, lambda tensor: tensor.path).items():
        value = np.empty(pieces[0].param_shape, np.float32)
        for tensor in pieces:
            target = tensor.view(value)
            target[...] = fetch(tensor)
            if tensor.entry.offset:
                target += np.float32(tensor.entry.offset)
            # The extremes carry NaN and infinity, without a mask as large as the parameter.
            if not (np.isfinite(target.min()) and np.isfinite(target.max())):
                raise errors.WeightsError(f"{where}: the tensor {tensor.name!r} holds NaN or infinity")
        *parents, leaf = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = place(path, value)
    return params


def check(where: str, tensors: Sequence[StoredTensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises WeightsError naming the first tensor that is missing or misshapen, or those that are left over."""
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


def pack(pieces: Sequence[StoredTensor], read: Callable[[str], np.ndarray], dtype: Any) -> np.ndarray:
    """Returns one stored tensor, the inverse of `assemble`.

    Args:
        pieces: all that share the tensor's name.
        read: returns a parameter by its path, float32.
        dtype: type of the result.

    Raises:
        WeightsError: a value is NaN or infinite, or becomes so in `dtype`.
    """
    stored = np.empty(pieces[0].shape, dtype)
    for tensor in pieces:
        value = tensor.view(read(tensor.path))
        # Overflow is refused below, by the name of the parameter.
        with np.errstate(over="ignore"):
            stored[..., tensor.entry.part] = value - np.float32(tensor.entry.offset) if tensor.entry.offset else value
    if not (np.isfinite(stored.min()) and np.isfinite(stored.max())):
        paths = ", ".join(dict.fromkeys(tensor.path for tensor in pieces))
        raise errors.WeightsError(f"the parameter {paths} holds NaN or infinity as {np.dtype(dtype).name}")
    return stored


def group(tensors: Sequence[StoredTensor], key: Callable[[StoredTensor], str]) -> dict[str, list[StoredTensor]]:
    """Returns the tensors by `key`, in the order in which they first come."""
    groups: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        groups.setdefault(key(tensor), []).append(tensor)
    return groups


def count_parameters(params: Params) -> int:
    """Returns how many numbers the tree holds."""
    return sum(count_parameters(v) if isinstance(v, dict) else int(v.size) for v in params.values())


def _inputs(path: str) -> int:
    """Returns how many dimensions of a parameter (of one expert) are contracted; 0 if it is no matrix."""
    leaf = path.rsplit("/", 1)[-1]
    if path == EMBEDDING or leaf in ("scale", "sinks", "selection_bias") or leaf.endswith(BIAS):
        return 0
    return 2 if path.endswith("attention/out") else 1


def _stored_shape(path: str, shape: tuple[int, ...], per_expert: bool, entry: Entry) -> tuple[int, ...]:
    lead, rest = (shape[:1], shape[1:]) if is_stacked(path) else ((), shape)
    if per_expert:
        lead = ()
    if path == EMBEDDING:
        return shape
    if inputs := _inputs(path):
        ins, outs = math.prod(rest[:inputs]), math.prod(rest[inputs:])
        rest = (outs, ins) if entry.transposed else (ins, outs)
    else:
        rest = (math.prod(rest),)
    # A part with a step takes every step-th column.
    return (*lead, *rest[:-1], rest[-1] * (entry.part.step or 1))
