"""What a config.json may say: its older and newer forms mean the same, and what we cannot do is refused by name."""

from typing import Any

import pytest

from rlvr import errors
from rlvr.policy.config import RopeConfig
from rlvr.text.metadata import Fields
from rlvr.weights import families

SIZES: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 56,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 40}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
WINDOW, FULL = "sliding_attention", "full_attention"


def read(family: str, **fields: Any) -> Any:
    return families.read_config(Fields("config.json", {"model_type": family, **SIZES, **fields}))


@pytest.mark.parametrize(
    ("family", "older", "newer"),
    [
        (
            "llama",
            {"rope_theta": 700.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 700.0}},
        ),
        ("llama", {}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}, "hidden_act": "silu"}),
        (
            "qwen3",
            {"rope_theta": 700.0, "rope_scaling": YARN, "use_sliding_window": False, "sliding_window": 9},
            {"rope_parameters": YARN | {"rope_theta": 700.0, "beta_fast": 32, "truncate": True}},
        ),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 4},
         {"use_sliding_window": True, "sliding_window": 9, "layer_types": [FULL] * 4 + [WINDOW] * 2}),
        ("smollm3", {"rope_theta": 5e6}, {"rope_theta": 5e6, "no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0]}),
        (
            "gemma3_text",
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
             "sliding_window": 9, "sliding_window_pattern": 3},
            {"rope_parameters": {FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                 WINDOW: {"rope_type": "default", "rope_theta": 1e4}},
             "sliding_window": 9, "layer_types": [WINDOW, WINDOW, FULL] * 2},
        ),
        (
            "olmo3",
            {"rope_theta": 700.0, "rope_scaling": YARN},
            {"rope_parameters": {FULL: YARN | {"rope_theta": 700.0}, WINDOW: {"rope_theta": 700.0}},
             "sliding_window": 4096, "layer_types": [WINDOW] * 3 + [FULL] + [WINDOW] * 2},
        ),
        (
            "qwen3_moe",
            EXPERTS | {"rope_theta": 700.0, "num_experts": 8, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
            EXPERTS | {"rope_theta": 700.0, "num_local_experts": 8, "mlp_only_layers": [0, 2, 3, 4]},
        ),
        (
            "gpt_oss",
            EXPERTS | {"rope_theta": 700.0, "rope_scaling": YARN | {"truncate": False}, "num_local_experts": 8},
            EXPERTS | {"rope_parameters": YARN | {"truncate": False, "rope_theta": 700.0}, "num_experts": 8,
                       "sliding_window": 128, "layer_types": [WINDOW, FULL] * 3},
        ),
    ],
)  # fmt: skip
def test_older_and_newer_forms_mean_the_same(family: str, older: dict, newer: dict) -> None:
    assert families.canonical(read(family, **older)) == families.canonical(read(family, **newer))


def test_yarn_magnitude() -> None:
    assert read("llama", rope_scaling=YARN).rope.magnitude == pytest.approx(1.2079441541679836)  # 0.1 ln 8 + 1
    both = read("llama", rope_scaling=YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}).rope.magnitude
    assert both == pytest.approx(1.2079441541679836 / 1.1039720770839918)
    assert read("llama", rope_scaling=YARN | {"attention_factor": 1.5}).rope.magnitude == 1.5
    assert read("llama", rope_scaling=YARN).rope == RopeConfig(
        scaling="yarn", factor=8.0, original_length=64, magnitude=pytest.approx(1.2079441541679836)
    )


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gemma3", {}, "model_type='gemma3' is not a known family (accepted: llama (LlamaForCausalLM), "),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ("gemma3_text", {"hidden_activation": "gelu"}, "hidden_activation='gelu' is not supported (accepted: 'silu',"),
        (
            "gemma3_text",
            {"rope_parameters": {WINDOW: YARN | {"rope_theta": 1e4}, FULL: {}}},
            "layers with a window have unscaled RoPE",
        ),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1e4}}, "must hold one object for each of full_attention"),
        ("olmo3", {"layer_types": [FULL] * 5}, "must hold one of full_attention, sliding_attention for each of 6"),
        ("olmo3", {"layer_types": ["chunked_attention"] * 6}, "layer_types=['chunked_attention'"),
        ("qwen2", {"layer_types": [WINDOW] * 6, "sliding_window": 9}, "sliding_window is absent or not in use"),
        ("qwen2", {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers=[1, 0] must hold 0 or 1 for each of 6 layers"),
        ("smollm3", {"mlp_bias": True}, "mlp_bias=True is not supported (accepted: False)"),
        ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "clip_qkv": 8.0}, "clip_qkv=8.0 is not"),
        (
            "mixtral",
            {"num_local_experts": 2, "num_experts_per_tok": 3, "rope_theta": 1e4},
            "policy.experts_per_token=3",
        ),
        ("mixtral", {"num_experts_per_tok": 3, "rope_theta": 1e4}, "the field num_local_experts is missing"),
        ("qwen3_moe", EXPERTS | {"num_experts": 4}, "the field rope_theta is missing"),
        (
            "qwen3_moe",
            EXPERTS | {"num_experts": 4, "rope_theta": 1e4, "mlp_only_layers": "all"},
            "mlp_only_layers='all' must be a list of layers",
        ),
        ("gpt_oss", {"swiglu_alpha": 1.0}, "swiglu_alpha=1.0 is not supported (accepted: 1.702)"),
        ("gpt_oss", {"quantization_config": {"quant_method": "awq"}}, "quant_method='awq' is not supported"),
        (
            "dots1",
            EXPERTS | {"n_routed_experts": 9, "n_shared_experts": 1, "n_group": 2, "rope_theta": 1e4},
            "policy.router_groups=2 must be at least 1 and divide policy.experts=9",
        ),
        ("dots1", EXPERTS | {"n_routed_experts": 9, "rope_theta": 1e4}, "the field n_shared_experts is missing"),
    ],
)
def test_refuses_by_name_what_it_cannot_do(family: str, changes: dict, message: str) -> None:
    with pytest.raises(errors.WeightsError) as caught:
        read(family, **changes)
    assert str(caught.value).startswith("config.json") and message in str(caught.value)
