"""Shapes of the policies of the pod configs, as their published config.json give them, with what the backward pass
finds of their blocks (`remat`), and what the configs share."""

from __future__ import annotations

import dataclasses

from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.policy.config import PolicyConfig, RopeConfig


def llama3_8b() -> PolicyConfig:
    """Llama 3 8B."""
    return PolicyConfig(
        family="llama", vocab_size=128256, dim=4096, layers=32, context_length=8192, query_heads=32, kv_heads=8,
        head_size=128, hidden=14336, rope=RopeConfig(theta=500_000.0), tied_head=False, dtype="bfloat16",
        remat="dots",
    )  # fmt: skip


def qwen3_30b_a3b() -> PolicyConfig:
    """Qwen3-30B-A3B: 128 experts, 8 a token."""
    return PolicyConfig(
        family="qwen3_moe", vocab_size=151936, dim=2048, layers=48, context_length=40960, query_heads=32, kv_heads=4,
        head_size=128, qk_norm="head", norm_epsilon=1e-6, hidden=6144, rope=RopeConfig(theta=1e6),
        moe_layers=tuple(range(48)), experts=128, experts_per_token=8, expert_hidden=768, tied_head=False,
        dtype="bfloat16", remat="attention",
    )  # fmt: skip


def qwen3_235b_a22b() -> PolicyConfig:
    """Qwen3-235B-A22B: the same family, deeper and wider."""
    return dataclasses.replace(
        qwen3_30b_a3b(), dim=4096, layers=94, query_heads=64, hidden=12288, moe_layers=tuple(range(94)),
        expert_hidden=1536,
    )  # fmt: skip


def gpt_oss_20b() -> PolicyConfig:
    """gpt-oss-20b: 32 experts, 4 a token, sinks, windows of 128 on every other layer."""
    return PolicyConfig(
        family="gpt_oss", vocab_size=201088, dim=2880, layers=24, context_length=131072, query_heads=64, kv_heads=8,
        head_size=64, attention_bias=True, out_bias=True, sinks=True, sliding_window=128,
        window_layers=tuple(range(0, 24, 2)),
        rope=RopeConfig(
            theta=150_000.0, scaling="yarn", factor=32.0, original_length=4096, truncate=False,
            magnitude=1.3465735902799727,
        ),
        hidden=2880, activation="clamped_silu", moe_layers=tuple(range(24)), experts=32, experts_per_token=4,
        expert_hidden=2880, expert_bias=True, router_bias=True, tied_head=False, dtype="bfloat16", remat="dots",
    )  # fmt: skip


def gsm8k() -> DataConfig:
    """GSM8K, answers in boxes; put any other task set in its place."""
    tasks = TaskSetConfig(
        source="gsm8k", path="data/gsm8k", answer_format="boxed", eval_size=500,
        instruction="Put the final number in \\boxed{}.",
    )  # fmt: skip
    return DataConfig(tasks=(tasks,))
