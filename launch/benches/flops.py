"""Floating-point operations of a policy's forward pass, counted by hand from its shape."""

from __future__ import annotations

from rlvr.policy.config import PolicyConfig


def matmul_parameters(config: PolicyConfig) -> tuple[int, int]:
    """Returns how many parameters a token is multiplied by: in the blocks (of experts, only those it goes to), and in
    the head."""
    attention = config.dim * config.head_size * 2 * (config.query_heads + config.kv_heads)
    dense = 3 * config.dim * config.hidden
    experts = 3 * config.dim * (config.experts_per_token * config.expert_hidden + config.shared_hidden)
    mixtures = len(config.moe_layers)
    blocks = config.layers * attention + (config.layers - mixtures) * dense
    return blocks + mixtures * (experts + config.dim * config.experts), config.dim * config.vocab_size


def forward_flops(config: PolicyConfig, tokens: int, keys: int, heads: int) -> float:
    """Returns the operations of a forward pass: two for each parameter and token, and the products of attention.

    Args:
        tokens: that run through the blocks.
        keys: sum over those tokens of the keys that each sees (windows are not taken off).
        heads: tokens whose logits are made.
    """
    blocks, head = matmul_parameters(config)
    attention = 4.0 * config.layers * config.query_heads * config.head_size * keys
    return 2.0 * (blocks * tokens + head * heads) + attention


def sequence_flops(config: PolicyConfig, prompt: int, completion: int) -> float:
    """Returns the operations of sampling one completion, its prompt's own pass left out (see `prompt_flops`)."""
    keys = completion * prompt + completion * (completion + 1) // 2
    return forward_flops(config, completion, keys, completion)


def prompt_flops(config: PolicyConfig, prompt: int) -> float:
    """Returns the operations of a prompt's pass, which needs no logits."""
    return forward_flops(config, prompt, prompt * (prompt + 1) // 2, 0)


def decode_bytes(config: PolicyConfig, prompt: int, completion: int, rows: int) -> float:
    """Returns the bytes that decoding `rows` completions together reads: weights once a step, cache for each row."""
    size = 4 if config.dtype == "float32" else 2
    keys = completion * prompt + completion * (completion + 1) // 2
    cache = 2 * config.layers * config.kv_heads * config.head_size * size
    return float(completion * sum(matmul_parameters(config)) * size + rows * keys * cache)
