"""The shape of a policy: one decoder, whose switches make every family of `rlvr.weights.families`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

from rlvr import errors

QK_NORMS = ("none", "head", "width")
NORM_PLACES = ("before", "after", "both")
ACTIVATIONS = ("silu", "gelu", "clamped_silu")
ROUTER_SCORES = ("softmax", "sigmoid")
MOE_BACKENDS = ("auto", "blocked", "ragged", "dense")
MOE_EXCHANGES = ("auto", "gather", "ragged")
REMATS = ("none", "dots", "attention", "block")
ATTENTION_BACKENDS = ("auto", "jax", "kernel")


@dataclasses.dataclass
class RopeConfig:
    """Rotary positions (Su et al., 2104.09864) and how they are stretched beyond the length they were trained for.

    Attributes:
        theta: pair j turns by position * theta**(-2j/h).
        scaling: key of `rlvr.policy.rope.SCALINGS`: "none", "linear", "llama3" or "yarn" (Peng et al., 2309.00071).
        factor: how much longer the context becomes.
        original_length: tokens of the context before scaling ("llama3", "yarn").
        low_frequency, high_frequency: of "llama3": turns over the original context below which a pair is slowed by
            the whole factor, and above which it is left alone.
        beta_slow, beta_fast: the same of "yarn".
        truncate: "yarn": whether the two bounds are rounded to whole pairs.
        magnitude: cosine and sine are multiplied by this (YaRN's attention factor).
    """

    theta: float = 10_000.0
    scaling: str = "none"
    factor: float = 1.0
    original_length: int = 0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_slow: float = 1.0
    beta_fast: float = 32.0
    truncate: bool = True
    magnitude: float = 1.0

    def validate(self, field: str) -> None:
        """Raises ConfigError naming the field that cannot work."""
        from rlvr.policy.rope import SCALINGS  # it imports this module

        errors.check_choice(f"{field}.scaling", self.scaling, SCALINGS)
        for name in ("theta", "factor", "low_frequency", "high_frequency", "beta_slow", "beta_fast", "magnitude"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise errors.ConfigError(f"{field}.{name}={value!r} must be a positive number")
        if self.scaling in ("llama3", "yarn") and self.original_length < 1:
            raise errors.ConfigError(
                f"{field}.original_length={self.original_length}: scaling {self.scaling!r} needs the context length "
                "that the weights were first trained for"
            )
        for low, high in (("low_frequency", "high_frequency"), ("beta_slow", "beta_fast")):
            if getattr(self, low) >= getattr(self, high):
                raise errors.ConfigError(
                    f"{field}.{low}={getattr(self, low)} must be less than {field}.{high}={getattr(self, high)}"
                )


@dataclasses.dataclass
class PolicyConfig:
    """One decoder, dense or mixture-of-experts per layer. Letters as in `rlvr.types`.

    Attributes:
        family: key of `rlvr.weights.families.FAMILIES` the weights came from, for exporting them again; "" for none.
        vocab_size: V.
        dim: D.
        layers: number of blocks.
        context_length: longest sequence the weights were made for; 0 means no limit is known.
        query_heads, kv_heads, head_size: H, K, h; H must be a multiple of K.
        attention_bias, out_bias: whether the query, key and value projections, and the output's, have biases.
        attention_scale: scores are multiplied by it; 0 means h**-0.5.
        qk_norm: RMSNorm of queries and keys before RoPE: "none", per "head" [h] (Qwen3, Gemma 3), or over the whole
            "width" [H * h] (OLMo 2).
        sinks: a learned logit per head that takes part in the softmax and has no value (gpt-oss).
        sliding_window: tokens a layer of `window_layers` sees, its own included.
        window_layers: which layers see only the window.
        rope: positions.
        window_theta: theta of the window layers, which are then never scaled; 0 means they turn like the others.
        nope_layers: layers without RoPE (SmolLM3).
        norm_place: RMSNorm "before" a sublayer, "after" it (OLMo 2), or "both" (Gemma 3).
        norm_epsilon: constant of every RMSNorm.
        hidden: F of a dense layer.
        activation: of the gated feed-forward layers: "silu", "gelu" (tanh form) or "clamped_silu" (gpt-oss).
        activation_limit: of "clamped_silu".
        moe_layers: which layers are mixtures of experts.
        experts, experts_per_token, expert_hidden: E, k and F of a mixture layer.
        expert_bias: whether the experts' projections have biases (gpt-oss).
        shared_hidden: F of an expert that every token uses beside the chosen ones; 0 for none.
        router_scores: "softmax" over all experts, or "sigmoid" of each (DeepSeek-V3).
        router_bias: a learned bias of the router's logits (gpt-oss).
        selection_bias: a bias that takes part in the choice of experts only, moved by load and not by gradient
            (DeepSeek-V3, 2412.19437; `ObjectiveConfig.bias_rate`).
        router_groups, router_groups_kept: experts are chosen from the best groups only (DeepSeek-V3); 1 and 1 for no
            groups.
        renormalize_gates: whether the k chosen gates are made to sum to one (Qwen3, Mixtral) or not (OLMoE).
        gate_scale: the gates are multiplied by it at the end.
        embed_scale: embeddings are multiplied by it (Gemma: sqrt(D)).
        tied_head: whether the head is the embedding table.
        dtype: type of the activations; parameters, router, norms and log-softmax stay float32.
        moe_backend: "auto" (by platform and load), "blocked" (sorted blocks), "ragged" (`jax.lax.ragged_dot`) or
            "dense" (every expert on every token: the oracle of the tests).
        moe_exchange: how tokens reach experts on other shards: "auto" (by platform and number of shards), "gather"
            (all-gather of tokens) or "ragged" (`jax.lax.ragged_all_to_all`; TPU and GPU).
        attention_backend: of rows and over the cache: "auto" (by platform and shape), "jax" (loops over blocks) or
            "kernel" (for TPUs: `rlvr.policy.flash` and JAX's ragged paged attention).
        remat: what the backward pass finds of each block, the rest being computed again: "none" (everything is there),
            "dots" (the products with weights are, those of experts apart, and what attention gives), "attention" (what
            attention gives, which is the dearest to repeat in long rows) or "block" (only what went into the block:
            least memory).
    """

    family: str = ""
    vocab_size: int = 264
    dim: int = 128
    layers: int = 4
    context_length: int = 0
    query_heads: int = 4
    kv_heads: int = 2
    head_size: int = 32
    attention_bias: bool = False
    out_bias: bool = False
    attention_scale: float = 0.0
    qk_norm: str = "none"
    sinks: bool = False
    sliding_window: int = 0
    window_layers: tuple[int, ...] = ()
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    window_theta: float = 0.0
    nope_layers: tuple[int, ...] = ()
    norm_place: str = "before"
    norm_epsilon: float = 1e-5
    hidden: int = 384
    activation: str = "silu"
    activation_limit: float = 7.0
    moe_layers: tuple[int, ...] = ()
    experts: int = 8
    experts_per_token: int = 2
    expert_hidden: int = 128
    expert_bias: bool = False
    shared_hidden: int = 0
    router_scores: str = "softmax"
    router_bias: bool = False
    selection_bias: bool = False
    router_groups: int = 1
    router_groups_kept: int = 1
    renormalize_gates: bool = True
    gate_scale: float = 1.0
    embed_scale: float = 1.0
    tied_head: bool = True
    dtype: str = "float32"
    moe_backend: str = "auto"
    moe_exchange: str = "auto"
    attention_backend: str = "auto"
    remat: str = "none"

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        for name in ("vocab_size", "dim", "layers", "query_heads", "kv_heads", "head_size", "hidden"):
            errors.check_at_least(f"policy.{name}", getattr(self, name), 1)
        for name in ("context_length", "attention_scale", "sliding_window", "window_theta", "shared_hidden"):
            errors.check_at_least(f"policy.{name}", getattr(self, name), 0)
        if self.query_heads % self.kv_heads:
            raise errors.ConfigError(
                f"policy.query_heads={self.query_heads} is not a multiple of policy.kv_heads={self.kv_heads}"
            )
        if self.head_size % 2:
            raise errors.ConfigError(f"policy.head_size={self.head_size}: RoPE needs an even head size")
        choices: dict[str, Collection[str]] = {
            "qk_norm": QK_NORMS,
            "norm_place": NORM_PLACES,
            "activation": ACTIVATIONS,
            "router_scores": ROUTER_SCORES,
            "dtype": ("float32", "bfloat16"),
            "moe_backend": MOE_BACKENDS,
            "moe_exchange": MOE_EXCHANGES,
            "attention_backend": ATTENTION_BACKENDS,
            "remat": REMATS,
        }
        for name, accepted in choices.items():
            errors.check_choice(f"policy.{name}", getattr(self, name), accepted)
        self.rope.validate("policy.rope")
        for name in ("moe_layers", "window_layers", "nope_layers"):
            for layer in getattr(self, name):
                if not 0 <= layer < self.layers:
                    raise errors.ConfigError(
                        f"policy.{name} names layer {layer}; there are layers 0 to {self.layers - 1}"
                    )
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise errors.ConfigError(f"policy.{name}={getattr(self, name)} names a layer twice")
        if self.window_layers and self.sliding_window < 1:
            raise errors.ConfigError(
                f"policy.sliding_window={self.sliding_window} must be at least 1: policy.window_layers has "
                f"{len(self.window_layers)} layers"
            )
        if self.moe_layers:
            self._validate_moe()

    def _validate_moe(self) -> None:
        if not 1 <= self.experts_per_token <= self.experts:
            raise errors.ConfigError(
                f"policy.experts_per_token={self.experts_per_token} must be between 1 and policy.experts={self.experts}"
            )
        groups, kept = self.router_groups, self.router_groups_kept
        if groups < 1 or self.experts % groups:
            raise errors.ConfigError(
                f"policy.router_groups={groups} must be at least 1 and divide policy.experts={self.experts}"
            )
        errors.check_between("policy.router_groups_kept", kept, 1, groups)
        size = self.experts // groups
        if groups > 1 and size < 2:
            raise errors.ConfigError(
                f"policy.router_groups={groups}: a group is scored by its two best experts, and has {size}"
            )
        if kept * size < self.experts_per_token:
            raise errors.ConfigError(
                f"policy.router_groups_kept={kept} groups of {size} hold fewer experts than "
                f"policy.experts_per_token={self.experts_per_token}"
            )
