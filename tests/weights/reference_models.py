"""Tiny random models of transformers, one of each family, with every size a different number."""

import warnings
from typing import Any

import torch
import transformers

V, D, H, K, HEAD, F, EXPERT_F, LAYERS, WINDOW = 271, 48, 6, 2, 10, 56, 40, 3, 7

COMMON: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": H,
    "num_key_value_heads": K,
    "head_dim": HEAD,
    "intermediate_size": F,
    "max_position_embeddings": 160,
    "rms_norm_eps": 3e-5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
PLAIN = {"rope_type": "default", "rope_theta": 500.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 40,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "original_max_position_embeddings": 24,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

# model_type -> what differs from COMMON.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "smollm3": {"rope_parameters": PLAIN, "no_rope_layers": [1, 0, 1], "attention_bias": True},
    "qwen2": {
        "rope_parameters": PLAIN,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
    },
    "qwen3": {"rope_parameters": YARN, "tie_word_embeddings": True},
    "gemma3_text": {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 2000.0, "factor": 8.0},
        },
        "layer_types": MIXED,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 14,
        "tie_word_embeddings": True,
    },
    "olmo2": {"rope_parameters": PLAIN},
    "olmo3": {
        "rope_parameters": {"sliding_attention": PLAIN, "full_attention": YARN},
        "layer_types": MIXED,
        "sliding_window": WINDOW,
    },
    "mixtral": {
        "rope_parameters": PLAIN,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
    },
    "qwen3_moe": {
        "rope_parameters": PLAIN,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": EXPERT_F,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
    "olmoe": {
        "rope_parameters": PLAIN,
        "head_dim": 8,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
    },
    "gpt_oss": {
        "rope_parameters": YARN | {"truncate": False},
        "layer_types": MIXED,
        "sliding_window": WINDOW,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "swiglu_limit": 1.5,  # low enough to be reached
    },
    "dots1": {
        "rope_parameters": PLAIN,
        "moe_intermediate_size": EXPERT_F,
        "n_routed_experts": 9,
        "n_shared_experts": 2,
        "n_group": 3,
        "topk_group": 2,
        "num_experts_per_tok": 4,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.7,
        "layer_types": MIXED,
        "sliding_window": WINDOW,
    },
}


def make_model(family: str, **changes: Any) -> Any:
    """Returns a model whose norms, biases, sinks and routers all matter."""
    config = transformers.AutoConfig.for_model(family, **(COMMON | FAMILIES[family] | changes))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn_like(tensor)
            if "norm" in name:
                tensor.copy_(0.3 * noise + (0.0 if family == "gemma3_text" else 1.0))
            elif "bias" in name or "sinks" in name:
                tensor.copy_(0.5 * noise)
            elif name == "model.embed_tokens.weight":
                tensor.copy_(noise)
            else:
                stacked_inputs_first = family == "gpt_oss" and tensor.ndim == 3
                inputs = tensor.shape[-2 if stacked_inputs_first else -1]
                tensor.copy_(noise * (3.0 if "lm_head" in name else 1.0) * inputs**-0.5)
    return model.eval()


def logprobs(model: Any, tokens: Any, left: tuple[int, ...] = (), right: tuple[int, ...] = ()) -> Any:
    """Returns log-probs [B, T, V] of tokens [B, T], each row padded on each side and cut out again."""
    batch, length = tokens.shape
    left, right = left or (0,) * batch, right or (0,) * batch
    width = max(a + length + b for a, b in zip(left, right, strict=True))
    padded = torch.full((batch, width), 3)
    mask = torch.zeros((batch, width), dtype=torch.long)
    for row, start in enumerate(left):
        padded[row, start : start + length] = torch.tensor(tokens[row], dtype=torch.long)
        mask[row, start : start + length] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(padded, attention_mask=mask, position_ids=positions).logits
    found = torch.log_softmax(logits.float(), -1)
    return torch.stack([found[row, start : start + length] for row, start in enumerate(left)]).numpy()
