"""Families of pretrained policies in GGUF files: for each, its name map and the reader of its metadata.

A new family is a new entry of `FAMILIES`. What the metadata can say and our policy cannot do is refused by the
readers here, key by key: a file that loads computes what its authors meant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from rlvr.policy.config import PolicyConfig, RopeConfig
from rlvr.text.metadata import Fields


@dataclasses.dataclass(frozen=True)
class GgufFamily:
    """One family.

    Attributes:
        names: our path -> the name in the file, "{i}" for the layer.
        interleaved: paths whose rows a file stores in the order of interleaved RoPE.
        read_config: reads the metadata, given V and whether the head is tied.
    """

    names: Mapping[str, str]
    interleaved: frozenset[str]
    read_config: Callable[[Fields, int, bool], PolicyConfig]


LLAMA_NAMES = {
    "embed/table": "token_embd.weight",
    "layer_{i}/attention_norm/scale": "blk.{i}.attn_norm.weight",
    "layer_{i}/attention/query": "blk.{i}.attn_q.weight",
    "layer_{i}/attention/key": "blk.{i}.attn_k.weight",
    "layer_{i}/attention/value": "blk.{i}.attn_v.weight",
    "layer_{i}/attention/out": "blk.{i}.attn_output.weight",
    "layer_{i}/mlp_norm/scale": "blk.{i}.ffn_norm.weight",
    "layer_{i}/mlp/gate": "blk.{i}.ffn_gate.weight",
    "layer_{i}/mlp/up": "blk.{i}.ffn_up.weight",
    "layer_{i}/mlp/down": "blk.{i}.ffn_down.weight",
    "final_norm/scale": "output_norm.weight",
    "head/kernel": "output.weight",
}

# Keys of the "llama." section that are read below, or that do not change what the policy computes.
LLAMA_KEYS = frozenset(
    {
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.vocab_size",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.attention.layer_norm_rms_epsilon",
        "llama.rope.freq_base",
        "llama.rope.dimension_count",
        "llama.rope.scaling.type",
        "llama.expert_count",
        "llama.expert_used_count",
    }
)


def read_llama(fields: Fields, vocab_size: int, tied_head: bool) -> PolicyConfig:
    """Reads the "llama." keys of a GGUF file; raises WeightsError naming an unsupported key."""
    for key in fields.values:
        if key.startswith("llama.") and key not in LLAMA_KEYS:
            raise fields.error(key, "is not supported: it may change what the policy computes")
    fields.require("llama.rope.scaling.type", "none")
    fields.require("llama.expert_count", 0)
    fields.require("llama.expert_used_count", 0)
    fields.require("llama.vocab_size", vocab_size)
    dim = fields.integer("llama.embedding_length")
    heads = fields.integer("llama.attention.head_count")
    head_size = fields.integer("llama.attention.key_length", max(1, dim // heads))
    fields.require("llama.attention.value_length", head_size)
    fields.require("llama.rope.dimension_count", head_size)
    return PolicyConfig(
        vocab_size=vocab_size,
        dim=dim,
        layers=fields.integer("llama.block_count"),
        query_heads=heads,
        kv_heads=fields.integer("llama.attention.head_count_kv", heads),
        head_size=head_size,
        hidden=fields.integer("llama.feed_forward_length"),
        tied_head=tied_head,
        rope=RopeConfig(theta=fields.number("llama.rope.freq_base", 10_000.0)),
        norm_epsilon=fields.number("llama.attention.layer_norm_rms_epsilon"),
    )


# Keyed by `general.architecture`.
FAMILIES = {
    "llama": GgufFamily(LLAMA_NAMES, frozenset({"attention/query", "attention/key"}), read_llama),
}


def choose_family(fields: Fields) -> GgufFamily:
    """Returns the family that `general.architecture` names; raises WeightsError naming what is accepted."""
    name = fields.values.get("general.architecture")
    if not isinstance(name, str) or name not in FAMILIES:
        raise fields.error("general.architecture", f"is not a known family (accepted: {', '.join(FAMILIES)})")
    return FAMILIES[name]
