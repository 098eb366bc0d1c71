"""The shape of a policy."""

from __future__ import annotations

import dataclasses

from rlvr import errors


@dataclasses.dataclass
class PolicyConfig:
    """One decoder, dense or mixture-of-experts per layer. Letters as in `rlvr.types`.

    Attributes:
        vocab_size: V.
        dim: D.
        layers: number of blocks.
        query_heads, kv_heads, head_size: H, K, h; H must be a multiple of K.
        hidden: F of a dense layer.
        moe_layers: which layers are mixtures of experts.
        experts, experts_per_token, expert_hidden: E, k and F of a mixture layer.
        renormalize_gates: whether the k chosen gates are made to sum to one (Qwen3, Mixtral) or not (OLMoE).
        tied_head: whether the head is the embedding table.
        rope_theta, norm_epsilon: constants of RoPE and RMSNorm.
        dtype: type of the activations; parameters, router, norms and log-softmax stay float32.
        moe_backend: "auto" (by platform), "blocked" (sorted blocks), "ragged" (`jax.lax.ragged_dot`) or
            "dense" (every expert on every token: the oracle of the tests).
        remat: "none" or "block" (recompute each block's activations in the backward pass).
    """

    vocab_size: int = 264
    dim: int = 128
    layers: int = 4
    query_heads: int = 4
    kv_heads: int = 2
    head_size: int = 32
    hidden: int = 384
    moe_layers: tuple[int, ...] = ()
    experts: int = 8
    experts_per_token: int = 2
    expert_hidden: int = 128
    renormalize_gates: bool = True
    tied_head: bool = True
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    dtype: str = "float32"
    moe_backend: str = "auto"
    remat: str = "none"

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        for name in ("vocab_size", "dim", "layers", "query_heads", "kv_heads", "head_size", "hidden"):
            errors.check_at_least(f"policy.{name}", getattr(self, name), 1)
        if self.query_heads % self.kv_heads:
            raise errors.ConfigError(
                f"policy.query_heads={self.query_heads} is not a multiple of policy.kv_heads={self.kv_heads}"
            )
        if self.head_size % 2:
            raise errors.ConfigError(f"policy.head_size={self.head_size}: RoPE needs an even head size")
        errors.check_choice("policy.dtype", self.dtype, ("float32", "bfloat16"))
        errors.check_choice("policy.moe_backend", self.moe_backend, ("auto", "blocked", "ragged", "dense"))
        errors.check_choice("policy.remat", self.remat, ("none", "block"))
        for layer in self.moe_layers:
            if not 0 <= layer < self.layers:
                raise errors.ConfigError(
                    f"policy.moe_layers names layer {layer}; there are layers 0 to {self.layers - 1}"
                )
        if self.moe_layers and not 1 <= self.experts_per_token <= self.experts:
            raise errors.ConfigError(
                f"policy.experts_per_token={self.experts_per_token} must be between 1 and policy.experts={self.experts}"
            )
