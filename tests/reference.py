"""Reference implementations built from our parameters, independently of `rlvr.weights`."""

from typing import Any

import numpy as np

from rlvr.policy.config import PolicyConfig


def llama_from_params(transformers: Any, torch: Any, config: PolicyConfig, params: Any) -> Any:
    """Returns transformers' LlamaForCausalLM in float32 with the given dense parameters."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.query_heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_size,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
            tie_word_embeddings=config.tied_head,
            attn_implementation="eager",
        )
    )

    def matrix(x: Any, inputs: int) -> Any:
        """[in..., out...] -> torch's [out, in]; `inputs` leading dimensions are the input."""
        array = np.asarray(x)
        size = int(np.prod(array.shape[:inputs]))
        return torch.from_numpy(array.reshape(size, -1).T.copy())

    def vector(x: Any) -> Any:
        return torch.from_numpy(np.asarray(x).copy())

    state = {"model.embed_tokens.weight": vector(params["embed"]["table"])}
    state["model.norm.weight"] = vector(params["final_norm"]["scale"])
    if not config.tied_head:
        state["lm_head.weight"] = matrix(params["head"]["kernel"], 1)
    for i in range(config.layers):
        layer, prefix = params[f"layer_{i}"], f"model.layers.{i}"
        state[f"{prefix}.input_layernorm.weight"] = vector(layer["attention_norm"]["scale"])
        state[f"{prefix}.post_attention_layernorm.weight"] = vector(layer["mlp_norm"]["scale"])
        for ours, theirs, inputs in (("query", "q", 1), ("key", "k", 1), ("value", "v", 1), ("out", "o", 2)):
            state[f"{prefix}.self_attn.{theirs}_proj.weight"] = matrix(layer["attention"][ours], inputs)
        for name in ("gate", "up", "down"):
            state[f"{prefix}.mlp.{name}_proj.weight"] = matrix(layer["mlp"][name], 1)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return model.eval()
