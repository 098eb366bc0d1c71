"""The policy that is measured: one of `workload.SHAPES` with random weights, and its ids as text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh

from launch.benches.measure import DTYPE
from launch.benches.workload import SHAPES
from rlvr import partition
from rlvr.policy.config import PolicyConfig, RopeConfig
from rlvr.policy.transformer import Params, Policy

SHAPE = flags.DEFINE_enum("shape", "smollm2_135m", sorted(SHAPES), "Shape of the policy; its weights are random.")


def policy_config() -> PolicyConfig:
    """Returns the config of the policy that --shape and --dtype name."""
    shape = dataclasses.asdict(SHAPES[SHAPE.value])
    rope = RopeConfig(theta=shape.pop("theta"))
    return PolicyConfig(**shape, rope=rope, dtype=DTYPE.value)


def random_params(policy: Policy, mesh: Mesh) -> Params:
    """Returns weights drawn on the host, which compiles nothing: normal, 0.02 wide; scales of norms are ones."""
    rng = np.random.default_rng(0)
    placed = partition.shardings(mesh, policy.logical_axes())

    def draw(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> jax.Array:
        value = np.ones(leaf.shape, np.float32)
        if len(leaf.shape) > 1:
            value = 0.02 * rng.standard_normal(leaf.shape, np.float32)
        return partition.put(value.astype(jnp.dtype(leaf.dtype)), sharding)

    return jax.tree.map(draw, policy.abstract_params(), placed)


class Digits:
    """A tokenizer whose text is the ids themselves, in digits; its end lies outside the vocabulary, so none is drawn.

    See `rlvr.text.tokenizer.Tokenizer`.
    """

    pad_id = 0
    bos_id = None
    eos_id = None
    chat_template = None

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.stop_ids = (vocab_size,)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Returns the ids that are written in the text."""
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the ids in digits."""
        return " ".join(map(str, ids))

    def token_text(self, token_id: int) -> str:
        """Returns the id in digits."""
        return str(token_id)

    def save(self, folder: Path) -> None:
        """Writes the vocabulary's size, which is all there is."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "digits.json").write_text(json.dumps({"vocab_size": self.vocab_size}))
