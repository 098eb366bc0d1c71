"""Parity with transformers: the same weights give the same logits and the same greedy tokens."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from rlvr.policy.config import PolicyConfig, RopeConfig
from rlvr.policy.transformer import Policy
from rlvr.rollout.config import EngineConfig
from rlvr.rollout.engine import Engine
from rlvr.types import Request

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = PolicyConfig(
    vocab_size=97,
    dim=48,
    layers=2,
    query_heads=6,
    kv_heads=2,
    head_size=10,
    hidden=56,
    experts=4,
    experts_per_token=2,
    expert_hidden=56,
    rope=RopeConfig(theta=500.0),  # unlike any default, and small enough that every frequency turns within a short row
    norm_epsilon=1e-4,
)
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 56,
    "rms_norm_eps": 1e-4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "attn_implementation": "eager",
}


def make_model(kind: str) -> tuple[Any, PolicyConfig]:
    torch.manual_seed(0)
    if kind == "mixtral":
        config = transformers.MixtralConfig(
            **SHAPE, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False
        )
        ours = dataclasses.replace(CONFIG, moe_layers=(0, 1), tied_head=False)
        model = transformers.MixtralForCausalLM(config)
    else:
        config = transformers.LlamaConfig(**SHAPE, tie_word_embeddings=kind == "tied")
        ours = dataclasses.replace(CONFIG, tied_head=kind == "tied")
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "norm" in name:
                param.copy_(torch.rand_like(param) + 0.5)
    return model.eval(), ours


def convert(model: Any, config: PolicyConfig) -> dict[str, Any]:
    """Their weights in our tree, written out here so that the importer is not its own judge."""
    w = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    dim, heads, kv, size = config.dim, config.query_heads, config.kv_heads, config.head_size
    params: dict[str, Any] = {
        "embed": {"table": w["model.embed_tokens.weight"]},
        "final_norm": {"scale": w["model.norm.weight"]},
    }
    if not config.tied_head:
        params["head"] = {"kernel": w["lm_head.weight"].T}
    for i in range(config.layers):
        at = f"model.layers.{i}."
        layer: dict[str, Any] = {
            "attention_norm": {"scale": w[at + "input_layernorm.weight"]},
            "mlp_norm": {"scale": w[at + "post_attention_layernorm.weight"]},
            "attention": {
                "query": w[at + "self_attn.q_proj.weight"].T.reshape(dim, heads, size),
                "key": w[at + "self_attn.k_proj.weight"].T.reshape(dim, kv, size),
                "value": w[at + "self_attn.v_proj.weight"].T.reshape(dim, kv, size),
                "out": w[at + "self_attn.o_proj.weight"].T.reshape(heads, size, dim),
            },
        }
        if i in config.moe_layers:
            gate_up = w[at + "mlp.experts.gate_up_proj"].swapaxes(1, 2)  # [E, D, 2F]
            layer["moe"] = {
                "router": w[at + "mlp.gate.weight"].T,
                "gate": gate_up[:, :, : config.expert_hidden],
                "up": gate_up[:, :, config.expert_hidden :],
                "down": w[at + "mlp.experts.down_proj"].swapaxes(1, 2),
            }
        else:
            layer["mlp"] = {name: w[at + f"mlp.{name}_proj.weight"].T for name in ("gate", "up", "down")}
        params[f"layer_{i}"] = layer
    return params


@pytest.mark.parametrize("kind", ["tied", "untied", "mixtral"])
def test_logits_and_greedy_tokens(kind: str, one_device: Mesh) -> None:
    model, config = make_model(kind)
    policy, params = Policy(config), convert(model, config)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, policy.abstract_params())

    tokens = np.random.default_rng(1).integers(0, 97, size=(4, 40)).astype(np.int32)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    positions = np.broadcast_to(np.arange(40, dtype=np.int32), tokens.shape)
    ours = jax.jit(lambda p: policy.logits(p, policy.forward(p, tokens, positions).hidden))(params)
    assert np.std(theirs) > 1.0  # logits of nearly zero would agree whatever the network does
    np.testing.assert_allclose(ours, theirs, atol=1e-4)

    prompts = [tokens[0, :3], tokens[1, :9], tokens[2, :1], tokens[3, :6]]
    engine = Engine(
        policy,
        EngineConfig(slots=3, max_prompt_tokens=9, max_new_tokens=24, prefill_rows=2, decode_steps=24),
        (),
        one_device,
    )
    requests = [Request(i, i, 0, tuple(prompt.tolist())) for i, prompt in enumerate(prompts)]
    completions = engine.generate(params, requests, jax.random.key(0), temperature=0.0)
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor(prompt[None], dtype=torch.long)
        with torch.no_grad():
            full = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=24, max_new_tokens=24
            )
        np.testing.assert_array_equal(completion.tokens, full[0, len(prompt) :].numpy())
