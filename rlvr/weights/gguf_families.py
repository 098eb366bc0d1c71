"""Families of pretrained policies in GGUF files: for each, its name map and the reader of its metadata.

A new family is a new entry of `FAMILIES`. What the metadata can say and our policy cannot do is refused by the
readers here, key by key: a file that loads computes what its authors meant. Keys, and what is meant where a key is
absent: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and the loaders of llama.cpp (`src/models`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping

import numpy as np

from rlvr import errors
from rlvr.policy.config import PolicyConfig, RopeConfig
from rlvr.policy.rope import rope_frequencies
from rlvr.text.metadata import Fields


@dataclasses.dataclass(frozen=True)
class GgufFamily:
    """One family.

    Attributes:
        names: our path -> the name in the file, "{i}" for the layer.
        interleaved: paths whose rows a file stores in the order of interleaved RoPE.
        rope_factors: whether a file may hold `ROPE_FACTORS`.
        read_config: reads the metadata, given V and whether the head is tied.
    """

    names: Mapping[str, str]
    interleaved: frozenset[str]
    rope_factors: bool
    read_config: Callable[[Fields, int, bool], PolicyConfig]


# The tensor by which RoPE's frequencies are divided, pair by pair: [h/2].
ROPE_FACTORS = "rope_freqs.weight"

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

# Gemma's norms scale by 1 + w: a GGUF file holds the sum, as our tree does.
GEMMA3_NAMES = LLAMA_NAMES | {
    "layer_{i}/attention/query_norm/scale": "blk.{i}.attn_q_norm.weight",
    "layer_{i}/attention/key_norm/scale": "blk.{i}.attn_k_norm.weight",
    "layer_{i}/attention_post_norm/scale": "blk.{i}.post_attention_norm.weight",
    "layer_{i}/mlp_post_norm/scale": "blk.{i}.post_ffw_norm.weight",
}

# Keys below the name of the architecture that are read, or that do not change what the policy computes.
COMMON_KEYS = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.factor",
    }
)
LLAMA_KEYS = COMMON_KEYS | {"expert_count", "expert_used_count"}
GEMMA3_KEYS = COMMON_KEYS | {"attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"}

# The one Gemma 3 whose scores are scaled by the width that D leaves to each head, and not by h: a GGUF file does not
# say so, and llama.cpp too tells it by its depth.
GEMMA3_27B_LAYERS = 62


def read_llama(fields: Fields, vocab_size: int, tied_head: bool) -> PolicyConfig:
    """Reads the "llama." keys of a dense policy; raises WeightsError naming an unsupported key."""
    fields.require("llama.vocab_size", vocab_size)
    fields.require("llama.expert_count", 0)
    fields.require("llama.expert_used_count", 0)
    common = _read_common(fields, "llama", LLAMA_KEYS, 10_000.0)
    return dataclasses.replace(common, family="llama", vocab_size=vocab_size, tied_head=tied_head)


def read_gemma3(fields: Fields, vocab_size: int, tied_head: bool) -> PolicyConfig:
    """Reads the "gemma3." keys; raises WeightsError naming an unsupported key."""
    fields.require("gemma3.vocab_size", vocab_size)
    common = _read_common(fields, "gemma3", GEMMA3_KEYS, 1_000_000.0)
    period = fields.integer("gemma3.attention.sliding_window_pattern", 6)
    scaled_width = common.dim // common.query_heads if common.layers == GEMMA3_27B_LAYERS else common.head_size
    return dataclasses.replace(
        common,
        family="gemma3_text",
        vocab_size=vocab_size,
        tied_head=tied_head,
        attention_scale=scaled_width**-0.5,
        qk_norm="head",
        norm_place="both",
        activation="gelu",
        embed_scale=common.dim**0.5,
        sliding_window=fields.integer("gemma3.attention.sliding_window"),
        window_layers=tuple(i for i in range(common.layers) if (i + 1) % period),
        # The scaling of RoPE is for the other layers only.
        window_theta=fields.number("gemma3.rope.freq_base_swa", 10_000.0),
    )


def _read_common(fields: Fields, name: str, keys: Collection[str], theta: float) -> PolicyConfig:
    """Reads what the families share; V and the head are left to the caller.

    Args:
        fields: the metadata.
        name: the architecture, before every key.
        keys: the keys that are known.
        theta: of RoPE where the file does not say.
    """
    for key in fields.values:
        if key.startswith(f"{name}.") and key.removeprefix(f"{name}.") not in keys:
            raise fields.error(key, "is not supported: it may change what the policy computes")
    dim = fields.integer(f"{name}.embedding_length")
    heads = fields.integer(f"{name}.attention.head_count")
    head_size = fields.integer(f"{name}.attention.key_length", max(1, dim // heads))
    fields.require(f"{name}.attention.value_length", head_size)
    fields.require(f"{name}.rope.dimension_count", head_size)
    return PolicyConfig(
        dim=dim,
        layers=fields.integer(f"{name}.block_count"),
        context_length=fields.integer(f"{name}.context_length"),
        query_heads=heads,
        kv_heads=fields.integer(f"{name}.attention.head_count_kv", heads),
        head_size=head_size,
        hidden=fields.integer(f"{name}.feed_forward_length"),
        rope=_read_rope(fields, name, theta),
        norm_epsilon=fields.number(f"{name}.attention.layer_norm_rms_epsilon"),
    )


def _read_rope(fields: Fields, name: str, theta: float) -> RopeConfig:
    fields.require(f"{name}.rope.scaling.type", "none", "linear")
    rope = RopeConfig(theta=fields.number(f"{name}.rope.freq_base", theta))
    # A factor without a type is meant as a linear one.
    factor = fields.number(f"{name}.rope.scaling.factor", 1.0)
    if fields.values.get(f"{name}.rope.scaling.type") == "none" or factor == 1.0:
        return rope
    return dataclasses.replace(rope, scaling="linear", factor=factor)


def read_rope_factors(where: str, factors: np.ndarray, config: PolicyConfig) -> RopeConfig:
    """Returns the RoPE of Llama 3.1 and later that gives the factors of a file.

    The file holds the factors and not what they were made from. The slowest pairs are slowed by the whole factor,
    so that it is the largest entry (8 in Llama 3.1, 32 in 3.2); every published policy blends between 1 and 4 turns
    over 8192 tokens, which the other entries must confirm.

    Args:
        where: the file, for messages.
        factors: [h/2] what each frequency is divided by.
        config: of the policy, with its unscaled RoPE.

    Raises:
        WeightsError: the factors come from another scaling, or the metadata scales RoPE too.
    """
    if config.rope.scaling != "none":
        raise errors.WeightsError(
            f"{where}: RoPE is scaled twice, by the tensor {ROPE_FACTORS!r} and by a factor of {config.rope.factor} "
            "in the metadata"
        )
    if np.all(factors == 1.0):
        return config.rope
    largest = float(np.max(factors))
    scaled = dataclasses.replace(
        config.rope,
        scaling="llama3",
        factor=float(f"{largest:.6g}"),  # what is left of a quotient of two float32 values
        original_length=8192,
        low_frequency=1.0,
        high_frequency=4.0,
    )
    if np.isfinite(largest) and largest > 1.0:
        expected = rope_frequencies(config.rope, config.head_size) / rope_frequencies(scaled, config.head_size)
        if np.allclose(factors, expected, rtol=1e-5, atol=0.0):
            return scaled
    raise errors.WeightsError(
        f"{where}: the tensor {ROPE_FACTORS!r} [{len(factors)}], {factors.min():g} to {factors.max():g}, is not "
        f"supported: with rope.freq_base={config.rope.theta:g} it is not Llama 3's scaling (blended between 1 and 4 "
        "turns over 8192 tokens)"
    )


# Keyed by `general.architecture`.
FAMILIES = {
    "llama": GgufFamily(LLAMA_NAMES, frozenset({"attention/query", "attention/key"}), True, read_llama),
    "gemma3": GgufFamily(GEMMA3_NAMES, frozenset(), False, read_gemma3),
}


def choose_family(fields: Fields) -> GgufFamily:
    """Returns the family that `general.architecture` names; raises WeightsError naming what is accepted."""
    name = fields.values.get("general.architecture")
    if not isinstance(name, str) or name not in FAMILIES:
        raise fields.error("general.architecture", f"is not a known family (accepted: {', '.join(FAMILIES)})")
    return FAMILIES[name]
