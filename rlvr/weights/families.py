"""Families of pretrained policies in Hugging Face folders: for each, its name map and the reader of its config.json.

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
        safetensors_names: our path -> the name in the file, "{i}" for the layer.
        read_json_config: reads a config.json.
    """

    architectures: tuple[str, ...]
    safetensors_names: Mapping[str, str]
    read_json_config: Callable[[Fields], PolicyConfig]


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


# Keyed by `model_type` of a config.json.
FAMILIES = {
    "llama": Family(
        architectures=("LlamaForCausalLM",),
        safetensors_names=LLAMA_SAFETENSORS_NAMES,
        read_json_config=read_llama_json,
    ),
}


def choose_family(fields: Fields, key: str) -> Family:
    """Returns the family that the field `key` names; raises WeightsError naming what is accepted."""
    name = fields.values.get(key)
    if not isinstance(name, str) or name not in FAMILIES:
        raise fields.error(key, f"is not a known family (accepted: {', '.join(FAMILIES)})")
    return FAMILIES[name]
