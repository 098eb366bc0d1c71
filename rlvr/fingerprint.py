"""Fingerprints by which two runs are shown to be the same, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlvr.types import Completion


def hash_params(params: Any) -> str:
    """Returns the sha256 over all parameters' bytes, in the order of their paths, on every process."""
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in sorted(leaves, key=lambda item: jax.tree_util.keystr(item[0])):
        value = leaf if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)
        array = np.ascontiguousarray(value)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def chain_completions(previous: str, completions: Sequence[Completion]) -> str:
    """Returns the next link of the chain over all sampled token ids; the first `previous` is ""."""
    digest = hashlib.sha256(previous.encode())
    for completion in completions:
        digest.update(np.int64(len(completion.tokens)).tobytes())
        digest.update(np.ascontiguousarray(completion.tokens, np.int32).tobytes())
    return digest.hexdigest()
