"""The fields of a config.json that most families share, read and written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlvr.policy.config import PolicyConfig
from rlvr.text.metadata import Fields

# Theirs -> ours.
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}


def read_common(
    fields: Fields,
    *,
    epsilon: float,
    head_size: int = 0,
    tied: bool = False,
    activation_field: str = "hidden_act",
    activation: str = "silu",
    quantized: tuple[str, ...] = (),
) -> PolicyConfig:
    """Reads the sizes, biases and norms; the rest has our defaults.

    Args:
        fields: the config.json.
        epsilon, head_size, tied, activation: what transformers takes where the file does not say; a head size of 0
            is D / H.
        activation_field: the field that names the activation.
        quantized: accepted values of `quantization_config.quant_method`.

    Raises:
        WeightsError: a field is missing, malformed, or means what the policy cannot do.
    """
    fields.require("mlp_bias", False)
    fields.require("rope_interleaved", False)
    fields.require("clip_qkv")
    fields.require("attn_logit_softcapping")
    fields.require("final_logit_softcapping")
    quantization = fields.values.get("quantization_config")
    if quantization is not None:
        if not quantized or not isinstance(quantization, dict):
            raise fields.error("quantization_config", "is not supported in this family (accepted: absent)")
        Fields(f"{fields.where}: quantization_config", quantization).require("quant_method", *quantized)
    fields.require(activation_field, *ACTIVATIONS)
    dim = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    bias = fields.flag("attention_bias", False)
    return PolicyConfig(
        vocab_size=fields.integer("vocab_size"),
        dim=dim,
        layers=fields.integer("num_hidden_layers"),
        context_length=fields.integer("max_position_embeddings", 0, least=0),
        query_heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_size=fields.integer("head_dim", head_size or max(1, dim // heads)),
        attention_bias=bias,
        out_bias=bias,
        norm_epsilon=fields.number("rms_norm_eps", epsilon),
        hidden=fields.integer("intermediate_size"),
        activation=ACTIVATIONS.get(fields.values.get(activation_field, ""), activation),
        tied_head=fields.flag("tie_word_embeddings", tied),
    )


def write_common(config: PolicyConfig, *, activation_field: str = "hidden_act") -> dict[str, Any]:
    """Returns the fields that `read_common` reads."""
    theirs = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    values = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "attention_bias": config.attention_bias,
        "rms_norm_eps": config.norm_epsilon,
        "intermediate_size": config.hidden,
        activation_field: theirs.get(config.activation, "silu"),
        "tie_word_embeddings": config.tied_head,
    }
    return values | ({"max_position_embeddings": config.context_length} if config.context_length else {})


def require_whole_heads(fields: Fields, config: PolicyConfig) -> None:
    """Raises WeightsError where transformers refuses a width that is no multiple of the number of heads."""
    if config.dim % config.query_heads:
        raise fields.error("hidden_size", f"must be a multiple of num_attention_heads={config.query_heads}")


def read_window_size(fields: Fields, default: int) -> int:
    """Returns `sliding_window`: 0 where it is null, `default` where it is absent."""
    return fields.integer("sliding_window", 0 if "sliding_window" in fields.values else default, least=0)


def read_windows(
    fields: Fields, layers: int, window: int, is_window: Callable[[int], bool]
) -> tuple[int, tuple[int, ...]]:
    """Reads which layers see only a window.

    Args:
        fields: the config.json.
        layers: how many there are.
        window: its size in tokens; 0 for none at all.
        is_window: which layers have it where `layer_types` does not say.

    Returns:
        (`sliding_window`, `window_layers`) of the policy.
    """
    kinds = ("full_attention", "sliding_attention")
    types = fields.values.get("layer_types")
    if types is None:
        chosen = tuple(i for i in range(layers) if window and is_window(i))
    else:
        if not isinstance(types, list) or len(types) != layers or any(kind not in kinds for kind in types):
            raise fields.error("layer_types", f"must hold one of {', '.join(kinds)} for each of {layers} layers")
        chosen = tuple(i for i, kind in enumerate(types) if kind == "sliding_attention")
    if chosen and not window:
        raise fields.error("layer_types", "names layers with a window, but sliding_window is absent or not in use")
    return (window, chosen) if chosen else (0, ())


def write_windows(config: PolicyConfig) -> dict[str, Any]:
    """Returns the fields that `read_windows` reads."""
    kinds = ["sliding_attention" if i in config.window_layers else "full_attention" for i in range(config.layers)]
    return {"sliding_window": config.sliding_window or None, "layer_types": kinds}
