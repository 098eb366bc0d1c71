"""Writes adapters as a folder that PEFT loads beside transformers' model of the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from rlvr import errors
from rlvr.policy import lora
from rlvr.policy.config import PolicyConfig
from rlvr.policy.lora import LoraConfig, Place
from rlvr.policy.parameters import LORA_A, LORA_B
from rlvr.policy.transformer import Params, Policy
from rlvr.weights import exporter, families
from rlvr.weights.layout import Entry, Names

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

# Where transformers keeps the experts of a layer, in every family: one module whose parameters, gate and up in one,
# are stacked. PEFT adapts such a parameter by wrapping its module, down around gate and up where it adapts both.
_EXPERTS = "mlp.experts"
_GATE_UP, _DOWN = f"{_EXPERTS}.gate_up_proj", f"{_EXPERTS}.down_proj"


class Pair(NamedTuple):
    """One adapter as PEFT holds it.

    Attributes:
        layer: where it is, "model.layers.<i>.".
        target: what it adapts, as named within the layer: a module, or a parameter.
        is_parameter: which of the two.
        key: the module that its tensors are stored under, within the layer.
        a, b: [r, in] and [out, r], those of E experts as [E r, in] and [out, r E].
        rank: r.
        alpha: alpha / r is the scale.
    """

    layer: str
    target: str
    is_parameter: bool
    key: str
    a: np.ndarray
    b: np.ndarray
    rank: int
    alpha: float


def export_adapters(
    folder: Path, config: PolicyConfig, chosen: LoraConfig, adapters: Params, *, family: str = "", base: str = ""
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, float32; the folder appears whole or not at all.

    Every target can be held. Experts' adapters become those of stacked parameters (`target_parameters`, as the
    experts are stored in transformers 5): gate's and up's become one of the sum of their ranks, block-diagonal.

    Args:
        folder: may exist if empty.
        config: of the policy that the adapters adapt.
        chosen, adapters: as trained.
        family: key of `families.FAMILIES` that names the modules; "" for the one that the policy came from.
        base: what is written as the base model: a folder of transformers or a name on a hub; "" for nothing.

    Raises:
        WeightsError: the folder is not empty or cannot be written, no family is known, the family cannot express the
            policy, or an adapter is not finite.
    """
    errors.check_new_folder(folder)
    names = families.FAMILIES[exporter.describe(config, family)["model_type"]].names
    pairs = list(_pairs(config, chosen, adapters, names))
    tensors: dict[str, np.ndarray] = {}
    for pair in pairs:
        for side, value in (("A", pair.a), ("B", pair.b)):
            if not np.isfinite(value).all():
                raise errors.WeightsError(f"the adapter of {pair.layer}{pair.target} holds NaN or infinity")
            key = f"base_model.model.{pair.layer}{pair.key}.lora_{side}.weight"
            tensors[key] = np.ascontiguousarray(value, np.float32)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        fields = describe(pairs, chosen, every_layer=not chosen.layers, base=base)
        (partial / CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        mode = (partial / CONFIG_FILE).stat().st_mode
        save_file(tensors, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        (partial / WEIGHTS_FILE).chmod(mode)  # the library makes it readable by its owner only
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise errors.WeightsError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def describe(pairs: list[Pair], chosen: LoraConfig, *, every_layer: bool, base: str) -> dict[str, Any]:
    """Returns adapter_config.json. Targets are named without their layer where every layer that has them is adapted."""

    def targets(parameters: bool) -> list[str]:
        found = (pair for pair in pairs if pair.is_parameter == parameters)
        return sorted({pair.target if every_layer else pair.layer + pair.target for pair in found})

    # One target has one rank and one scale, in whichever layers it is.
    unusual = {p.target: p for p in pairs if (p.rank, p.alpha) != (chosen.rank, chosen.alpha)}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": chosen.rank,
        "lora_alpha": _plain(chosen.alpha),
        "rank_pattern": {target: pair.rank for target, pair in unusual.items()},
        "alpha_pattern": {target: _plain(pair.alpha) for target, pair in unusual.items()},
        "target_modules": targets(parameters=False),
        "target_parameters": targets(parameters=True) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _plain(value: float) -> float:
    return int(value) if value == int(value) else value


def _pairs(config: PolicyConfig, chosen: LoraConfig, adapters: Params, names: Names) -> Iterator[Pair]:
    experts: dict[str, list[Place]] = {}
    for place in lora.places(chosen, Policy(config)):
        layer = f"model.layers.{place.layer.removeprefix('layer_')}."
        if place.module == "moe":
            experts.setdefault(layer, []).append(place)
            continue
        stored = names[f"layer_{{i}}/{place.module}/{place.name}"]
        assert isinstance(stored, str), stored  # stacks are the experts' only
        module = stored.removeprefix("model.layers.{i}.").removesuffix(".weight")
        # PEFT takes modules of such names, in a policy that has experts, for those of the experts. A dense matrix is
        # a parameter as well.
        as_parameter = bool(config.moe_layers) and place.module != "attention"
        pair = adapters[place.layer][place.module]
        yield Pair(
            layer,
            f"{module}.weight" if as_parameter else module,
            as_parameter,
            module,
            np.asarray(pair[place.name + LORA_A]).reshape(-1, place.rank).T,
            np.asarray(pair[place.name + LORA_B]).reshape(place.rank, -1).T,
            place.rank,
            chosen.alpha,
        )
    for layer, places in experts.items():
        yield from _expert_pairs(layer, config, chosen, places, adapters[places[0].layer]["moe"], names)


def _expert_pairs(
    layer: str, config: PolicyConfig, chosen: LoraConfig, places: list[Place], adapters: Params, names: Names
) -> Iterator[Pair]:
    ranks = {place.name: place.rank for place in places}
    a = {name: np.asarray(adapters[name + LORA_A]).swapaxes(1, 2) for name in ranks}  # [E, r, in]
    b = {name: np.asarray(adapters[name + LORA_B]).swapaxes(1, 2) for name in ranks}  # [E, out, r]
    fused = [name for name in ("gate", "up") if name in ranks]
    if fused:
        total, width = sum(ranks[name] for name in fused), config.expert_hidden
        block, column = np.zeros((config.experts, 2 * width, total), np.float32), 0
        for name in fused:
            # The pair has one scale, alpha' / total: the first's. What another's differs by goes into its b.
            scaled = b[name] * np.float32(ranks[fused[0]] / ranks[name])
            block[:, _fused_rows(name, width, names), column : column + ranks[name]] = scaled
            column += ranks[name]
        key = f"{_EXPERTS}.base_layer" if "down" in ranks else _EXPERTS
        stacked = np.concatenate([a[name] for name in fused], axis=1)
        yield Pair(layer, _GATE_UP, True, key, *_flat(stacked, block), total, chosen.alpha * total / ranks[fused[0]])
    if "down" in ranks:
        yield Pair(layer, _DOWN, True, _EXPERTS, *_flat(a["down"], b["down"]), ranks["down"], chosen.alpha)


def _fused_rows(name: str, width: int, names: Names) -> slice:
    """Returns which outputs of the stacked parameter are gate's or up's: what the file says, or a half."""
    entry = names[f"layer_{{i}}/moe/{name}"]
    if isinstance(entry, Entry):
        return entry.part
    return slice(0, width) if name == "gate" else slice(width, 2 * width)


def _flat(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps [E, r, in] and [E, out, r] to [E r, in] and [out, r E]: PEFT runs over the experts first in the one, and
    last in the other."""
    return a.reshape(-1, a.shape[2]), b.transpose(1, 2, 0).reshape(b.shape[1], -1)
