"""Families of pretrained policies: for each, its name maps and the readers of its two kinds of metadata.

A new family is a new entry of `FAMILIES`. What a family's metadata can say and our policy cannot do is
refused by the readers here, field by field: a weight file that loads computes what its authors meant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from rlvr import errors
from rlvr.policy.config import PolicyConfig, RopeConfig
from rlvr.text.metadata import Fields


@dataclasses.dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        architectures: accepted entries of `architectures` in a config.json.
        safetensors_names, gguf_names: our path -> the name in the file, "{i}" for the layer.
        interleaved: paths whose rows a GGUF file stores in the order of interleaved RoPE.
        read_json_config: reads a config.json.
        read_gguf_config: reads the metadata of a GGUF file, given V and whether the head is tied.
    """

    architectures: tuple[str, ...]
    safetensors_names: Mapping[str, str]
    gguf_names: Mapping[str, str]
    interleaved: frozenset[str]
    read_json_config: Callable[[Fields], PolicyConfig]
    read_gguf_config: Callable[[Fields, int, bool], PolicyConfig]


LLAMA_SAFETENSORS_NAMES = {
    "embed/table": "model.embed_tokens.weight",
    "layer_{i}/attention_norm/scale": "model.layers.{i}.input_layernorm.weight",
    "layer_{i}/attention/query": "model.layers.{i}.self_attn.q_proj.weight",
    "layer_{i}/attention/key": "model.layers.{i}.self_attn.k_proj.weight",
    "layer_{i}/attention/value": "model.layers.{i}.self_attn.v_proj.weight",
    "layer_{i}/attention/out": "model.layers.{i}.self_attn.o_proj.weight",
    "layer_{i}/mlp_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
    "layer_{i}/mlp/gate": "model.layers.{i}.mlp.gate_proj.weight",
    "layer_{i}/mlp/up": "model.layers.{i}.mlp.up_proj.weight",
    "layer_{i}/mlp/down": "model.layers.{i}.mlp.down_proj.weight",
    "final_norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
}

LLAMA_GGUF_NAMES = {
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
LLAMA_GGUF_KEYS = frozenset(
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


def read_llama_json(fields: Fields) -> PolicyConfig:
    """Reads the config.json of a dense Llama policy; raises WeightsError naming an unsupported field."""
    fields.require("hidden_act", "silu")
    fields.require("attention_bias", False)
    fields.require("mlp_bias", False)
    fields.require("rope_interleaved", False)
    fields.require("partial_rotary_factor", 1)
    fields.require("quantization_config")
    dim = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    return _checked(
        fields,
        PolicyConfig(
            vocab_size=fields.integer("vocab_size"),
            dim=dim,
            layers=fields.integer("num_hidden_layers"),
            query_heads=heads,
            kv_heads=fields.integer("num_key_value_heads", heads),
            head_size=fields.integer("head_dim", max(1, dim // heads)),
            hidden=fields.integer("intermediate_size"),
            tied_head=fields.flag("tie_word_embeddings", False),
            rope=RopeConfig(theta=_read_rope_theta(fields)),
            norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        ),
    )


def read_llama_gguf(fields: Fields, vocab_size: int, tied_head: bool) -> PolicyConfig:
    """Reads the "llama." keys of a GGUF file; raises WeightsError naming an unsupported key."""
    for key in fields.values:
        if key.startswith("llama.") and key not in LLAMA_GGUF_KEYS:
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
    return _checked(
        fields,
        PolicyConfig(
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
        ),
    )


def _read_rope_theta(fields: Fields) -> float:
    """Reads theta from a field of its own (older files) or from `rope_parameters`; refuses any scaling."""
    scaling = fields.values.get("rope_scaling")
    parameters = fields.values.get("rope_parameters")
    for key, value in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        if value is None:
            continue
        if not isinstance(value, dict) or value.get("rope_type", value.get("type", "default")) != "default":
            raise fields.error(key, "is not supported: only unscaled RoPE (rope_type 'default') is")
        Fields(f"{fields.where}: {key}", value).require("partial_rotary_factor", 1)
    if parameters is not None and "rope_theta" in parameters:
        return Fields(f"{fields.where}: rope_parameters", parameters).number("rope_theta")
    return fields.number("rope_theta", 10_000.0)


def _checked(fields: Fields, config: PolicyConfig) -> PolicyConfig:
    try:
        config.validate()
    except errors.ConfigError as error:
        raise errors.WeightsError(f"{fields.where}: {error}") from error
    return config


# Keyed by `model_type` of a config.json, which here is also the `general.architecture` of a GGUF file.
FAMILIES = {
    "llama": Family(
        architectures=("LlamaForCausalLM",),
        safetensors_names=LLAMA_SAFETENSORS_NAMES,
        gguf_names=LLAMA_GGUF_NAMES,
        interleaved=frozenset({"attention/query", "attention/key"}),
        read_json_config=read_llama_json,
        read_gguf_config=read_llama_gguf,
    ),
}


def choose_family(fields: Fields, key: str) -> Family:
    """Returns the family that the field `key` names; raises WeightsError naming what is accepted."""
    name = fields.values.get(key)
    if not isinstance(name, str) or name not in FAMILIES:
        raise fields.error(key, f"is not a known family (accepted: {', '.join(FAMILIES)})")
    return FAMILIES[name]
