"""Where Hugging Face's families keep each parameter: one map a family, put together from those that they share."""

from __future__ import annotations

from rlvr.weights.layout import Entry, Names

_LAYER = "model.layers.{i}."


def _beneath(ours: str, theirs: str, names: dict[str, str]) -> dict[str, str | Entry]:
    """Returns the map of one module, given the names within it."""
    return {f"layer_{{i}}/{ours}{path}": f"{_LAYER}{theirs}{name}" for path, name in names.items()}


_GATED = {"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"}
_SHARED: Names = {
    "embed/table": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
    **_beneath(
        "attention/",
        "self_attn.",
        {
            "query": "q_proj.weight",
            "key": "k_proj.weight",
            "value": "v_proj.weight",
            "out": "o_proj.weight",
            "query_bias": "q_proj.bias",
            "key_bias": "k_proj.bias",
            "value_bias": "v_proj.bias",
            "out_bias": "o_proj.bias",
        },
    ),
    **_beneath("mlp/", "mlp.", _GATED),
}
_QK_NORMS = _beneath(
    "attention/", "self_attn.", {"query_norm/scale": "q_norm.weight", "key_norm/scale": "k_norm.weight"}
)
_NORMS_BEFORE = _beneath(
    "", "", {"attention_norm/scale": "input_layernorm.weight", "mlp_norm/scale": "post_attention_layernorm.weight"}
)
_NORMS_AFTER = _beneath(
    "",
    "",
    {
        "attention_post_norm/scale": "post_attention_layernorm.weight",
        "mlp_post_norm/scale": "post_feedforward_layernorm.weight",
    },
)
# Each expert of these families is a tensor of its own.
_EXPERTS = _beneath("moe/", "mlp.", {"router": "gate.weight"}) | _beneath("moe/", "mlp.experts.{e}.", _GATED)


def _offset(names: Names) -> Names:
    """Returns the map with every norm stored as its difference from one."""
    norms = {path: name for path, name in names.items() if path.endswith("norm/scale") and isinstance(name, str)}
    return {**names, **{path: Entry(name, offset=1.0) for path, name in norms.items()}}


LLAMA: Names = {**_SHARED, **_NORMS_BEFORE}
QWEN3: Names = {**LLAMA, **_QK_NORMS}
OLMO2: Names = {**_SHARED, **_QK_NORMS, **_NORMS_AFTER}
GEMMA3: Names = _offset(
    {
        **OLMO2,
        **_beneath(
            "",
            "",
            {"attention_norm/scale": "input_layernorm.weight", "mlp_norm/scale": "pre_feedforward_layernorm.weight"},
        ),
    }
)
QWEN3_MOE: Names = {**QWEN3, **_EXPERTS}
MIXTRAL: Names = {
    **LLAMA,
    **_beneath(
        "moe/",
        "block_sparse_moe.",
        {
            "router": "gate.weight",
            "gate": "experts.{e}.w1.weight",
            "up": "experts.{e}.w3.weight",
            "down": "experts.{e}.w2.weight",
        },
    ),
}
DOTS1: Names = {
    **QWEN3_MOE,
    **_beneath("moe/", "mlp.", {"selection_bias": "gate.e_score_correction_bias"}),
    **_beneath("shared/", "mlp.shared_experts.", _GATED),
}

# gpt-oss stacks the experts, keeps matrices as [in, out], and alternates the columns of gate and up.
_GPT_OSS_EXPERTS = {
    "gate": ("gate_up_proj", slice(0, None, 2)),
    "up": ("gate_up_proj", slice(1, None, 2)),
    "down": ("down_proj", slice(None)),
}
GPT_OSS: Names = {
    **LLAMA,
    **_beneath("", "", {"attention/sinks": "self_attn.sinks"}),
    **_beneath("moe/", "mlp.router.", {"router": "weight", "router_bias": "bias"}),
    **{
        f"layer_{{i}}/moe/{path}{suffix}": Entry(f"{_LAYER}mlp.experts.{name}{suffix}", part, transposed=False)
        for path, (name, part) in _GPT_OSS_EXPERTS.items()
        for suffix in ("", "_bias")
    },
}
