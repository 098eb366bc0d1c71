"""Reads a pretrained policy, whatever it is stored in."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rlvr import errors
from rlvr.policy.config import PolicyConfig
from rlvr.text import gguf_vocabulary, tokenizer
from rlvr.weights import gguf, layout, safetensors


class ImportedPolicy(NamedTuple):
    """A pretrained policy in our terms.

    Attributes:
        config: its shape.
        params: our parameter tree, float32 numpy arrays.
        tokenizer: its tokenizer; every id it produces is below `config.vocab_size`.
        stored_types: the types of the tensors in the source, e.g. ("F32", "Q4_1").
    """

    config: PolicyConfig
    params: layout.Params
    tokenizer: tokenizer.Tokenizer
    stored_types: tuple[str, ...]


def read_weights(source: Path) -> ImportedPolicy:
    """Reads a .gguf file, a folder that holds one, or a Hugging Face folder (config.json and safetensors).

    Raises:
        WeightsError: nothing readable is there, or see `read_gguf`, `read_safetensors`, `load_tokenizer`.
    """
    if source.is_file():
        return _read_gguf(source)
    if not source.is_dir():
        raise errors.WeightsError(f"{source}: no such file or folder")
    if (source / "config.json").exists():
        # The tokenizer first: a folder that lacks it should not cost the time of reading the weights.
        text = tokenizer.load_tokenizer(source)
        read = safetensors.read_safetensors(source)
        return _checked(source, ImportedPolicy(read.config, read.params, text, read.stored_types))
    files = sorted(source.glob("*.gguf"))
    if len(files) == 1:
        return _read_gguf(files[0])
    found = f"{len(files)} .gguf files ({', '.join(f.name for f in files)})" if files else "neither"
    raise errors.WeightsError(f"{source}: expected config.json or exactly one .gguf file, found {found}")


def _read_gguf(file: Path) -> ImportedPolicy:
    read = gguf.read_gguf(file)
    text = gguf_vocabulary.make_tokenizer(read.metadata, str(file))
    return _checked(file, ImportedPolicy(read.config, read.params, text, read.stored_types))


def _checked(source: Path, policy: ImportedPolicy) -> ImportedPolicy:
    if policy.tokenizer.vocab_size > policy.config.vocab_size:
        raise errors.WeightsError(
            f"{source}: the tokenizer has {policy.tokenizer.vocab_size} ids, but the embedding table only "
            f"{policy.config.vocab_size} rows"
        )
    return policy
