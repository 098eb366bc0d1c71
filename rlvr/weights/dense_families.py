"""Dense families: how each reads and writes its config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from rlvr.policy.config import PolicyConfig
from rlvr.text.metadata import Fields
from rlvr.weights.config_fields import (
    read_common,
    read_window_size,
    read_windows,
    require_whole_heads,
    write_common,
    write_windows,
)
from rlvr.weights.rope_fields import read_rope, read_rope_by_type, write_rope, write_rope_by_type


def read_llama(fields: Fields) -> PolicyConfig:
    """Llama 1 to 3 and what shares their network, SmolLM2 among them."""
    config = dataclasses.replace(read_common(fields, epsilon=1e-6), rope=read_rope(fields, 10_000.0))
    require_whole_heads(fields, config)
    return config


def write_llama(config: PolicyConfig) -> dict[str, Any]:
    """The inverse of `read_llama`."""
    return write_common(config) | write_rope(config.rope) | {"mlp_bias": False}


def read_smollm3(fields: Fields) -> PolicyConfig:
    """SmolLM3: Llama with layers that have no positions, which may be those with a window."""
    common = read_common(fields, epsilon=1e-6, tied=True)
    interval = fields.integer("no_rope_layer_interval", 4)
    turns = fields.values.get("no_rope_layers")
    if turns is None:
        turns = [int((i + 1) % interval != 0) for i in range(common.layers)]
    if not isinstance(turns, list) or len(turns) < common.layers or any(turn not in (0, 1) for turn in turns):
        raise fields.error("no_rope_layers", f"must hold 0 or 1 for each of {common.layers} layers")
    window, layers = _read_optional_windows(fields, common.layers, lambda i: not turns[i])
    return dataclasses.replace(
        common,
        rope=read_rope(fields, 2_000_000.0),
        nope_layers=tuple(i for i in range(common.layers) if not turns[i]),
        sliding_window=window,
        window_layers=layers,
    )


def write_smollm3(config: PolicyConfig) -> dict[str, Any]:
    """The inverse of `read_smollm3`."""
    turns = [int(i not in config.nope_layers) for i in range(config.layers)]
    return write_llama(config) | _write_optional_windows(config) | {"no_rope_layers": turns}


def read_qwen2(fields: Fields) -> PolicyConfig:
    """Qwen2 and Qwen2.5: biases of queries, keys and values whatever the config says."""
    common = read_common(fields, epsilon=1e-6)
    return _with_upper_windows(
        fields, dataclasses.replace(common, attention_bias=True, out_bias=False, rope=read_rope(fields, 10_000.0))
    )


def write_qwen2(config: PolicyConfig) -> dict[str, Any]:
    """The inverse of `read_qwen2`."""
    values = write_common(config) | write_rope(config.rope) | _write_optional_windows(config)
    del values["attention_bias"]  # the family has no such field
    return values


def read_qwen3(fields: Fields) -> PolicyConfig:
    """Qwen3: norms of each head's queries and keys."""
    common = read_common(fields, epsilon=1e-6, head_size=128)
    return _with_upper_windows(fields, dataclasses.replace(common, qk_norm="head", rope=read_rope(fields, 10_000.0)))


def write_qwen3(config: PolicyConfig) -> dict[str, Any]:
    """The inverse of `read_qwen3`."""
    return write_common(config) | write_rope(config.rope) | _write_optional_windows(config)


def read_gemma3(fields: Fields) -> PolicyConfig:
    """Gemma 3, text only: windows on five of six layers with RoPE of their own, scaled embeddings, norms on both
    sides of each sublayer."""
    fields.require("use_bidirectional_attention", False)
    common = read_common(
        fields, epsilon=1e-6, head_size=256, tied=True, activation_field="hidden_activation", activation="gelu"
    )
    pattern = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", 6))
    window, layers = read_windows(
        fields, common.layers, read_window_size(fields, 4096), lambda i: (i + 1) % pattern != 0
    )
    rope, window_theta = read_rope_by_type(fields, 1_000_000.0, "rope_local_base_freq", 10_000.0)
    config = dataclasses.replace(
        common,
        qk_norm="head",
        norm_place="both",
        attention_scale=fields.integer("query_pre_attn_scalar", 256) ** -0.5,
        embed_scale=common.dim**0.5,
        rope=rope,
        window_theta=window_theta,
        sliding_window=window,
        window_layers=layers,
    )
    require_whole_heads(fields, config)
    return config


def write_gemma3(config: PolicyConfig) -> dict[str, Any]:
    """The inverse of `read_gemma3`."""
    scale = config.attention_scale or config.head_size**-0.5
    return (
        write_common(config, activation_field="hidden_activation")
        | write_windows(config)
        | write_rope(config.rope)
        | {
            "rope_local_base_freq": config.window_theta or config.rope.theta,
            "query_pre_attn_scalar": max(1, round(scale**-2)),
        }
    )


def read_olmo2(fields: Fields) -> PolicyConfig:
    """OLMo 2: norms after each sublayer, and over the whole width of queries and keys."""
    common = read_common(fields, epsilon=1e-5)
    return dataclasses.replace(common, qk_norm="width", norm_place="after", rope=read_rope(fields, 10_000.0))


def write_olmo2(config: PolicyConfig) -> dict[str, Any]:
    """The inverse of `read_olmo2`."""
    return write_common(config) | write_rope(config.rope)


def read_olmo3(fields: Fields) -> PolicyConfig:
    """OLMo 3: OLMo 2 with windows on three of four layers, whose RoPE is not scaled."""
    common = read_common(fields, epsilon=1e-5)
    window, layers = read_windows(fields, common.layers, read_window_size(fields, 4096), lambda i: (i + 1) % 4 != 0)
    rope, window_theta = read_rope_by_type(fields, 500_000.0)
    return dataclasses.replace(
        common,
        qk_norm="width",
        norm_place="after",
        rope=rope,
        window_theta=window_theta,
        sliding_window=window,
        window_layers=layers,
    )


def write_olmo3(config: PolicyConfig) -> dict[str, Any]:
    """The inverse of `read_olmo3`."""
    # In both forms: transformers 4 reads the older one, and 5 a theta for the windows in the newer one only.
    return write_common(config) | write_windows(config) | write_rope(config.rope) | write_rope_by_type(config)


def _read_optional_windows(
    fields: Fields, layers: int, is_window: Callable[[int], bool]
) -> tuple[int, tuple[int, ...]]:
    """`read_windows` of the families whose `sliding_window` counts only with `use_sliding_window`."""
    used = fields.flag("use_sliding_window", False) and fields.values.get("sliding_window") is not None
    return read_windows(fields, layers, fields.integer("sliding_window") if used else 0, is_window)


def _write_optional_windows(config: PolicyConfig) -> dict[str, Any]:
    return write_windows(config) | {"use_sliding_window": bool(config.window_layers)}


def _with_upper_windows(fields: Fields, config: PolicyConfig) -> PolicyConfig:
    """Reads the windows of Qwen: of the layers from `max_window_layers` on."""
    first = fields.integer("max_window_layers", 28, least=0)
    window, layers = _read_optional_windows(fields, config.layers, lambda i: i >= first)
    return dataclasses.replace(config, sliding_window=window, window_layers=layers)
