"""Mixture-of-experts families: how each reads and writes its config.json."""

from __future__ import annotations

import dataclasses
from typing import Any

from rlvr.policy.config import PolicyConfig
from rlvr.policy.mlp import SWISH_GAIN
from rlvr.text.metadata import Fields
from rlvr.weights.config_fields import read_common, read_window_size, read_windows, write_common, write_windows
from rlvr.weights.rope_fields import read_rope, write_rope


def read_mixtral(fields: Fields) -> PolicyConfig:
    """Mixtral: Llama with experts in every layer; a window, where there is one, in every layer too."""
    common = read_common(fields, epsilon=1e-5)
    every = tuple(range(common.layers))
    window = read_window_size(fields, 0)
    return dataclasses.replace(
        common,
        rope=read_rope(fields),
        sliding_window=window,
        window_layers=every if window else (),
        moe_layers=every,
        experts=_read_experts(fields, "num_local_experts", "num_experts"),
        experts_per_token=fields.integer("num_experts_per_tok"),
        expert_hidden=common.hidden,
        renormalize_gates=True,
    )


def write_mixtral(config: PolicyConfig) -> dict[str, Any]:
    """The inverse of `read_mixtral`."""
    return (
        write_common(config)
        | write_rope(config.rope)
        | {
            "intermediate_size": config.expert_hidden,
            "sliding_window": config.sliding_window if config.window_layers else None,
            "num_local_experts": config.experts,
            "num_experts_per_tok": config.experts_per_token,
        }
    )


def read_qwen3_moe(fields: Fields) -> PolicyConfig:
    """Qwen3-MoE: experts in every `decoder_sparse_step`-th layer but those of `mlp_only_layers`."""
    common = read_common(fields, epsilon=1e-6)
    step = fields.integer("decoder_sparse_step", 1)
    dense = fields.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(i, int) for i in dense):
        raise fields.error("mlp_only_layers", "must be a list of layers")
    used = fields.flag("use_sliding_window", False) and fields.values.get("sliding_window") is not None
    return dataclasses.replace(
        common,
        qk_norm="head",
        rope=read_rope(fields),
        sliding_window=fields.integer("sliding_window") if used else 0,
        window_layers=tuple(range(common.layers)) if used else (),
        moe_layers=tuple(i for i in range(common.layers) if i not in dense and (i + 1) % step == 0),
        experts=_read_experts(fields, "num_experts", "num_local_experts"),
        experts_per_token=fields.integer("num_experts_per_tok"),
        expert_hidden=fields.integer("moe_intermediate_size"),
        renormalize_gates=fields.flag("norm_topk_prob", False),
    )


def write_qwen3_moe(config: PolicyConfig) -> dict[str, Any]:
    """The inverse of `read_qwen3_moe`."""
    return (
        write_common(config)
        | write_rope(config.rope)
        | {
            "use_sliding_window": bool(config.window_layers),
            "sliding_window": config.sliding_window if config.window_layers else None,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [i for i in range(config.layers) if i not in config.moe_layers],
            "num_experts": config.experts,
            "num_experts_per_tok": config.experts_per_token,
            "moe_intermediate_size": config.expert_hidden,
            "norm_topk_prob": config.renormalize_gates,
        }
    )


def read_olmoe(fields: Fields) -> PolicyConfig:
    """OLMoE: norms over the whole width of queries and keys, experts in every layer, gates as they are."""
    common = read_common(fields, epsilon=1e-5)
    fields.require("sliding_window")
    if common.query_heads * common.head_size != common.dim:
        raise fields.error("head_dim", f"must be hidden_size / num_attention_heads = {common.dim / common.query_heads}")
    return dataclasses.replace(
        common,
        qk_norm="width",
        rope=read_rope(fields, 10_000.0),
        moe_layers=tuple(range(common.layers)),
        experts=_read_experts(fields, "num_experts", "num_local_experts"),
        experts_per_token=fields.integer("num_experts_per_tok"),
        expert_hidden=common.hidden,
        renormalize_gates=fields.flag("norm_topk_prob", False),
    )


def write_olmoe(config: PolicyConfig) -> dict[str, Any]:
    """The inverse of `read_olmoe`."""
    return (
        write_common(config)
        | write_rope(config.rope)
        | {
            "intermediate_size": config.expert_hidden,
            "num_experts": config.experts,
            "num_experts_per_tok": config.experts_per_token,
            "norm_topk_prob": config.renormalize_gates,
        }
    )


def read_gpt_oss(fields: Fields) -> PolicyConfig:
    """gpt-oss: sinks, windows on every other layer, biases everywhere, clamped units."""
    fields.require("hidden_act", "silu")
    common = read_common(fields, epsilon=1e-5, head_size=64, quantized=("mxfp4",))
    fields.require("swiglu_alpha", SWISH_GAIN)
    bias = fields.flag("attention_bias", True)
    window, layers = read_windows(fields, common.layers, read_window_size(fields, 128), lambda i: i % 2 == 0)
    return dataclasses.replace(
        common,
        attention_bias=bias,
        out_bias=bias,
        sinks=True,
        sliding_window=window,
        window_layers=layers,
        rope=read_rope(fields),
        activation="clamped_silu",
        activation_limit=fields.number("swiglu_limit", 7.0),
        moe_layers=tuple(range(common.layers)),
        experts=_read_experts(fields, "num_local_experts", "num_experts"),
        experts_per_token=fields.integer("num_experts_per_tok"),
        expert_hidden=common.hidden,
        expert_bias=True,
        router_bias=True,
        renormalize_gates=True,
    )


def write_gpt_oss(config: PolicyConfig) -> dict[str, Any]:
    """The inverse of `read_gpt_oss`."""
    rope = write_rope(config.rope)
    return (
        write_common(config)
        | write_windows(config)
        | {
            "rope_theta": rope["rope_theta"],
            # Where it is left out transformers stretches by 32.
            "rope_scaling": rope["rope_scaling"] or {"rope_type": "default"},
            "intermediate_size": config.expert_hidden,
            "swiglu_limit": config.activation_limit,
            "num_local_experts": config.experts,
            "num_experts_per_tok": config.experts_per_token,
        }
    )


def read_dots1(fields: Fields) -> PolicyConfig:
    """dots.llm1: the router, groups and shared experts of DeepSeek-V3 (2412.19437) with plain attention."""
    common = read_common(fields, epsilon=1e-6)
    dense = fields.integer("first_k_dense_replace", 0, least=0)
    first = fields.integer("max_window_layers", 62, least=0)
    window, layers = read_windows(fields, common.layers, read_window_size(fields, 4096), lambda i: i >= first)
    hidden = fields.integer("moe_intermediate_size")
    return dataclasses.replace(
        common,
        qk_norm="head",
        rope=read_rope(fields),
        sliding_window=window,
        window_layers=layers,
        moe_layers=tuple(range(dense, common.layers)),
        experts=_read_experts(fields, "n_routed_experts", "num_local_experts"),
        experts_per_token=fields.integer("num_experts_per_tok"),
        expert_hidden=hidden,
        shared_hidden=hidden * fields.integer("n_shared_experts"),
        router_scores="sigmoid",
        selection_bias=True,
        router_groups=fields.integer("n_group", 1),
        router_groups_kept=fields.integer("topk_group", 1),
        renormalize_gates=fields.flag("norm_topk_prob", False),
        gate_scale=fields.number("routed_scaling_factor", 1.0),
    )


def write_dots1(config: PolicyConfig) -> dict[str, Any]:
    """The inverse of `read_dots1`."""
    return (
        write_common(config)
        | write_rope(config.rope)
        | write_windows(config)
        | {
            "first_k_dense_replace": min(config.moe_layers, default=config.layers),
            "n_routed_experts": config.experts,
            "num_experts_per_tok": config.experts_per_token,
            "moe_intermediate_size": config.expert_hidden,
            "n_shared_experts": max(1, config.shared_hidden // config.expert_hidden),
            "n_group": config.router_groups,
            "topk_group": config.router_groups_kept,
            "norm_topk_prob": config.renormalize_gates,
            "routed_scaling_factor": config.gate_scale,
        }
    )


def _read_experts(fields: Fields, key: str, alias: str) -> int:
    """Reads how many experts there are: versions of transformers write one name or the other."""
    return fields.integer(alias if fields.values.get(key) is None and fields.values.get(alias) is not None else key)
