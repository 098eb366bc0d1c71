"""RoPE in a config.json, read and written.

Three forms exist: `rope_theta` with `rope_scaling` (before transformers 5), one `rope_parameters` for both (since), and
`rope_parameters` by layer type (Gemma 3, OLMo 3). All are read. The older form is written wherever it can say
everything, because every version of transformers reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlvr.policy.config import PolicyConfig, RopeConfig
from rlvr.text.metadata import Fields

# Theirs -> ours.
_KINDS = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}
_COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_KEYS: Mapping[str, frozenset[str]] = {
    "none": _COMMON | {"factor", "attention_factor", "original_max_position_embeddings"},  # of no effect here
    "linear": _COMMON | {"factor", "original_max_position_embeddings"},
    "llama3": _COMMON | {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "yarn": _COMMON
    | {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate", "attention_factor"}
    | {"mscale", "mscale_all_dim"},
}
LAYER_TYPES = ("full_attention", "sliding_attention")


def read_rope(fields: Fields, theta: float | None = None) -> RopeConfig:
    """Reads RoPE that is the same in all layers.

    Args:
        fields: the config.json.
        theta: what is meant where the file does not say; None: it must.

    Raises:
        WeightsError: a kind of scaling, or a field of it, that the policy does not have.
    """
    values, key = _scaling(fields)
    if any(name in values for name in LAYER_TYPES):
        raise fields.error(key, "is not supported: RoPE by layer type is not of this family")
    return _read(fields, values, key, theta)


def read_rope_by_type(
    fields: Fields, theta: float, window_field: str = "rope_theta", window_theta: float | None = None
) -> tuple[RopeConfig, float]:
    """Reads RoPE that may be scaled in the layers of full attention and never is in those with a window.

    Args:
        fields: the config.json.
        theta: of the full layers, where the file does not say.
        window_field, window_theta: the older field of the window layers' theta, and what is meant where it is absent;
            None: the theta of the full layers.

    Returns:
        (RoPE of the full layers, theta of the window layers).
    """
    parameters = fields.values.get("rope_parameters") or {}
    if not isinstance(parameters, dict):
        raise fields.error("rope_parameters", "must be an object")
    nested = {name: parameters.get(name) or {} for name in LAYER_TYPES}
    if parameters and not (parameters.keys() <= nested.keys() and all(isinstance(v, dict) for v in nested.values())):
        raise fields.error("rope_parameters", f"must hold one object for each of {', '.join(LAYER_TYPES)}")
    scaling = fields.values.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise fields.error("rope_scaling", "must be an object")
    full = {**nested["full_attention"], **scaling}
    if full.get("truncate") is False:
        raise fields.error("rope_parameters", "is not supported: transformers ignores truncate in RoPE by layer type")
    rope = _read(fields, full, "RoPE of full_attention", theta)
    window = nested["sliding_attention"]
    local = _read(fields, window, "RoPE of sliding_attention", None) if "rope_theta" in window else RopeConfig()
    if local.scaling != "none":
        raise fields.error("rope_parameters", "is not supported: layers with a window have unscaled RoPE ('default')")
    if "rope_theta" in window:
        return rope, local.theta
    return rope, fields.number(window_field, window_theta or rope.theta)


def _scaling(fields: Fields) -> tuple[Mapping[str, Any], str]:
    """Returns the object that holds the scaling, and its name; as in transformers, the older one wins."""
    for key in ("rope_scaling", "rope_parameters"):
        value = fields.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise fields.error(key, "must be an object")
        if value:
            return value, key
    return {}, "rope_scaling"


def _read(fields: Fields, values: Mapping[str, Any], key: str, theta: float | None) -> RopeConfig:
    scaling = Fields(f"{fields.where}: {key}", values)
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in _KINDS:
        raise scaling.error(
            "rope_type" if "rope_type" in values else "type", f"is not supported (accepted: {', '.join(_KINDS)})"
        )
    ours = _KINDS[kind]
    for name, value in values.items():
        if value is not None and name not in _KEYS[ours]:
            raise scaling.error(name, f"is not supported in RoPE of the kind {kind!r}")
    scaling.require("partial_rotary_factor", 1)
    fields.require("partial_rotary_factor", 1)
    rope = RopeConfig(
        theta=scaling.number("rope_theta") if "rope_theta" in values else fields.number("rope_theta", theta),
        scaling=ours,
    )
    if ours == "none":
        return rope
    rope.factor = scaling.number("factor")
    if ours == "linear":
        return rope
    # Where neither says it, the whole context is the original one.
    fallback = fields.integer("max_position_embeddings", 0, least=0) or None
    rope.original_length = fields.integer(
        "original_max_position_embeddings", scaling.integer("original_max_position_embeddings", fallback)
    )
    if ours == "llama3":
        rope.low_frequency = scaling.number("low_freq_factor")
        rope.high_frequency = scaling.number("high_freq_factor")
        return rope
    rope.beta_slow, rope.beta_fast = scaling.number("beta_slow", 1.0), scaling.number("beta_fast", 32.0)
    rope.truncate = scaling.flag("truncate", True)
    rope.magnitude = scaling.number("attention_factor", _yarn_magnitude(scaling, rope.factor))
    return rope


def _yarn_magnitude(scaling: Fields, factor: float) -> float:
    """Returns the factor on cosine and sine that YaRN recommends (2309.00071, eq. 22), or DeepSeek's ratio of two."""

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.values.get("mscale") and scaling.values.get("mscale_all_dim"):
        return magnitude(scaling.number("mscale")) / magnitude(scaling.number("mscale_all_dim"))
    return magnitude(1.0)


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """Returns `rope_theta` and `rope_scaling`."""
    return {"rope_theta": rope.theta, "rope_scaling": None if rope.scaling == "none" else _write_scaling(rope)}


def write_rope_by_type(config: PolicyConfig) -> dict[str, Any]:
    """Returns `rope_parameters` by layer type."""
    full = _write_scaling(config.rope) | {"rope_theta": config.rope.theta}
    window = {"rope_type": "default", "rope_theta": config.window_theta or config.rope.theta}
    return {"rope_parameters": {"full_attention": full, "sliding_attention": window}}


def _write_scaling(rope: RopeConfig) -> dict[str, Any]:
    kind = {ours: theirs for theirs, ours in _KINDS.items()}[rope.scaling]
    values: dict[str, Any] = {"rope_type": kind}
    if rope.scaling == "none":
        return values
    values["factor"] = rope.factor
    if rope.scaling == "linear":
        return values
    values["original_max_position_embeddings"] = rope.original_length
    if rope.scaling == "llama3":
        return values | {"low_freq_factor": rope.low_frequency, "high_freq_factor": rope.high_frequency}
    return values | {
        "beta_slow": rope.beta_slow,
        "beta_fast": rope.beta_fast,
        "truncate": rope.truncate,
        "attention_factor": rope.magnitude,
    }
