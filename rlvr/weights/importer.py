"""Reads a pretrained policy, whatever it is stored in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlvr import errors, partition
from rlvr.policy.config import PolicyConfig
from rlvr.policy.transformer import Policy
from rlvr.text import gguf_vocabulary, tokenizer
from rlvr.weights import gguf, layout, safetensors


class ImportedPolicy(NamedTuple):
    """A pretrained policy in our terms.

    Attributes:
        config: its shape.
        params: our parameter tree, float32: on the mesh, or numpy arrays where none was given.
        tokenizer: its tokenizer; every id it produces is below `config.vocab_size`.
        stored_types: the types of the tensors in the source, e.g. ("F32", "Q4_1").
    """

    config: PolicyConfig
    params: layout.Params
    tokenizer: tokenizer.Tokenizer
    stored_types: tuple[str, ...]


def read_weights(
    source: Path, mesh: Mesh | None = None, check: Callable[[PolicyConfig], None] = lambda config: None
) -> ImportedPolicy:
    """Reads a .gguf file, a folder that holds one, or a Hugging Face folder (config.json and safetensors).

    Args:
        source: the file or folder.
        mesh: each parameter goes there as soon as it is read, so that the host never holds a second copy of all.
        check: called with the shape of the policy of a folder before its weights are read.

    Raises:
        WeightsError: nothing readable is there, or see `read_gguf`, `read_safetensors`, `load_tokenizer`.
    """
    if source.is_file():
        return _read_gguf(source, mesh, check)
    if not source.is_dir():
        raise errors.WeightsError(f"{source}: no such file or folder")
    if (source / "config.json").exists():
        # What can be refused without the weights comes before the time of reading them.
        text = tokenizer.load_tokenizer(source)
        config = safetensors.read_folder_config(source)
        _check_vocabulary(source, text, config)
        check(config)
        place = (lambda path, value: value) if mesh is None else make_place(config, mesh)
        read = safetensors.read_safetensors(source, place)
        return ImportedPolicy(read.config, read.params, text, read.stored_types)
    files = sorted(source.glob("*.gguf"))
    if len(files) == 1:
        return _read_gguf(files[0], mesh, check)
    found = f"{len(files)} .gguf files ({', '.join(f.name for f in files)})" if files else "neither"
    raise errors.WeightsError(f"{source}: expected config.json or exactly one .gguf file, found {found}")


def make_place(config: PolicyConfig, mesh: Mesh) -> Callable[[str, np.ndarray], jax.Array]:
    """Returns the function that puts a parameter, by its path, on the mesh in the layout of the policy."""
    shardings = partition.shardings(mesh, Policy(config).logical_axes())
    leaves = jax.tree_util.tree_leaves_with_path(shardings, is_leaf=lambda s: isinstance(s, NamedSharding))
    flat = {"/".join(key.key for key in path): sharding for path, sharding in leaves}
    return lambda path, value: jax.block_until_ready(partition.put(value, flat[path]))


def _read_gguf(file: Path, mesh: Mesh | None, check: Callable[[PolicyConfig], None]) -> ImportedPolicy:
    read = gguf.read_gguf(file)
    text = gguf_vocabulary.make_tokenizer(read.metadata, str(file))
    _check_vocabulary(file, text, read.config)
    check(read.config)
    if mesh is not None:
        _place_all(read.params, make_place(read.config, mesh))
    return ImportedPolicy(read.config, read.params, text, read.stored_types)


def _place_all(params: layout.Params, place: Callable[[str, np.ndarray], Any], prefix: str = "") -> None:
    """Puts every parameter of the tree in place, each host copy dropped before the next is made."""
    for name, value in params.items():
        if isinstance(value, dict):
            _place_all(value, place, f"{prefix}{name}/")
        else:
            params[name] = place(prefix + name, value)


def _check_vocabulary(source: Path, text: tokenizer.Tokenizer, config: PolicyConfig) -> None:
    if text.vocab_size > config.vocab_size:
        raise errors.WeightsError(
            f"{source}: the tokenizer has {text.vocab_size} ids, but the embedding table only {config.vocab_size} rows"
        )
