"""Families of pretrained policies in Hugging Face's format: config.json read and written, and a name map for each.

A new family is a new entry of `FAMILIES`. What a config.json can say and our policy cannot do is refused by the
readers, field by field: weights that load compute what their authors meant. The writers say what they can, and
`write_config` reads the result back: a policy that a family cannot express is refused by the field that is lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from rlvr import errors
from rlvr.policy.config import PolicyConfig, RopeConfig
from rlvr.text.metadata import Fields
from rlvr.weights import dense_families as dense
from rlvr.weights import moe_families as moe
from rlvr.weights import names
from rlvr.weights.layout import Names


class Family(NamedTuple):
    """One family.

    Attributes:
        architecture: its class in transformers, the entry of `architectures`.
        names: where its files keep each parameter.
        read: reads a config.json.
        write: the inverse, of what `read` can give.
    """

    architecture: str
    names: Names
    read: Callable[[Fields], PolicyConfig]
    write: Callable[[PolicyConfig], dict[str, Any]]


# Keyed by `model_type`.
FAMILIES = {
    "llama": Family("LlamaForCausalLM", names.LLAMA, dense.read_llama, dense.write_llama),
    "smollm3": Family("SmolLM3ForCausalLM", names.LLAMA, dense.read_smollm3, dense.write_smollm3),
    "qwen2": Family("Qwen2ForCausalLM", names.LLAMA, dense.read_qwen2, dense.write_qwen2),
    "qwen3": Family("Qwen3ForCausalLM", names.QWEN3, dense.read_qwen3, dense.write_qwen3),
    "gemma3_text": Family("Gemma3ForCausalLM", names.GEMMA3, dense.read_gemma3, dense.write_gemma3),
    "olmo2": Family("Olmo2ForCausalLM", names.OLMO2, dense.read_olmo2, dense.write_olmo2),
    "olmo3": Family("Olmo3ForCausalLM", names.OLMO2, dense.read_olmo3, dense.write_olmo3),
    "mixtral": Family("MixtralForCausalLM", names.MIXTRAL, moe.read_mixtral, moe.write_mixtral),
    "qwen3_moe": Family("Qwen3MoeForCausalLM", names.QWEN3_MOE, moe.read_qwen3_moe, moe.write_qwen3_moe),
    "olmoe": Family("OlmoeForCausalLM", names.QWEN3_MOE, moe.read_olmoe, moe.write_olmoe),
    "gpt_oss": Family("GptOssForCausalLM", names.GPT_OSS, moe.read_gpt_oss, moe.write_gpt_oss),
    "dots1": Family("Dots1ForCausalLM", names.DOTS1, moe.read_dots1, moe.write_dots1),
}

# How a policy is run, not what it computes.
_RUNNING = ("family", "dtype", "moe_backend", "moe_exchange", "attention_backend", "remat")


def read_config(fields: Fields) -> PolicyConfig:
    """Reads a config.json of any family; `family` of the result is the key of `FAMILIES`.

    Raises:
        WeightsError: the architecture is not known, or a field is missing, malformed, or means what our policy cannot
            do.
    """
    supported = ", ".join(f"{name} ({family.architecture})" for name, family in FAMILIES.items())
    name = fields.values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise fields.error("model_type", f"is not a known family (accepted: {supported})")
    family = FAMILIES[name]
    architectures = fields.values.get("architectures")
    if architectures is not None and (not isinstance(architectures, list) or family.architecture not in architectures):
        raise fields.error("architectures", f"is not supported (accepted: {family.architecture})")
    config = dataclasses.replace(family.read(fields), family=name)
    try:
        config.validate()
    except errors.ConfigError as error:
        raise errors.WeightsError(f"{fields.where}: {error}") from error
    return config


def write_config(config: PolicyConfig, name: str) -> dict[str, Any]:
    """Returns the config.json of a policy as one of a family.

    Raises:
        WeightsError: the family is not known, or cannot express the policy; the field it would lose is named.
    """
    if name not in FAMILIES:
        hint = errors.nearest(name, FAMILIES)
        raise errors.WeightsError(f"family={name!r} is not known{hint} (accepted: {', '.join(FAMILIES)})")
    family = FAMILIES[name]
    written = {"architectures": [family.architecture], "model_type": name, **family.write(config)}
    try:
        again = read_config(Fields(f"as {name}", written))
    except errors.WeightsError as error:
        raise errors.WeightsError(f"the policy cannot be expressed {error}") from error
    wanted, found = (dataclasses.asdict(canonical(c)) for c in (config, again))
    for field in ("moe_layers", *wanted):  # first what decides whether other fields count
        if wanted[field] != found[field]:
            raise errors.WeightsError(
                f"the policy cannot be expressed as {name}: {field} would be {found[field]!r}, and is {wanted[field]!r}"
            )
    return written


def canonical(config: PolicyConfig) -> PolicyConfig:
    """Returns the config with every field that changes nothing at its default: equal functions compare equal."""
    plain = PolicyConfig()
    idle = list(_RUNNING)
    if config.activation != "clamped_silu":
        idle.append("activation_limit")
    if len(config.moe_layers) == config.layers:
        idle.append("hidden")
    if not config.moe_layers:
        idle += ["experts", "experts_per_token", "expert_hidden", "expert_bias", "shared_hidden", "router_scores"]
        idle += ["router_bias", "selection_bias", "router_groups", "router_groups_kept"]
        idle += ["renormalize_gates", "gate_scale"]
    unscaled_alike = _canonical_rope(config.rope) == RopeConfig(theta=config.window_theta)
    if not config.window_layers or unscaled_alike:
        idle.append("window_theta")
    if not config.window_layers:
        idle.append("sliding_window")
    config = dataclasses.replace(config, **{name: getattr(plain, name) for name in idle})
    return dataclasses.replace(
        config,
        moe_layers=tuple(sorted(config.moe_layers)),
        window_layers=tuple(sorted(config.window_layers)),
        nope_layers=tuple(sorted(config.nope_layers)),
        attention_scale=config.attention_scale or config.head_size**-0.5,
        rope=_canonical_rope(config.rope),
    )


def _canonical_rope(rope: RopeConfig) -> RopeConfig:
    plain = RopeConfig()
    idle: list[str] = []
    if rope.scaling == "none":
        idle.append("factor")
    if rope.scaling not in ("llama3", "yarn"):
        idle.append("original_length")
    if rope.scaling != "llama3":
        idle += ["low_frequency", "high_frequency"]
    if rope.scaling != "yarn":
        idle += ["beta_slow", "beta_fast", "truncate"]
    return dataclasses.replace(rope, **{name: getattr(plain, name) for name in idle})
