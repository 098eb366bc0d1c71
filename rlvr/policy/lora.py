"""Low-rank adapters (LoRA: Hu et al., 2106.09685): W + (alpha / r) a b, with W frozen and b zero at the start.

Adapters are a tree of their own, nested like the parameters: beside a matrix `query` [in..., out...] stand
`query_lora_a` [in..., r] and `query_lora_b` [r, out...]; the experts' have a leading E. The policy runs with them in
either of two ways: `attach` puts them beside the matrices, and their product is never made; `merge` adds it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvr import errors
from rlvr.partition import Axes
from rlvr.policy.parameters import LORA_A, LORA_B, fan_in
from rlvr.policy.transformer import Params, Policy


class Target(NamedTuple):
    """How a matrix that can have an adapter is laid out: [experts..., in..., out...].

    Attributes:
        experts: how many leading dimensions tell one matrix from another.
        inputs: how many dimensions after them are contracted.
    """

    experts: int = 0
    inputs: int = 1


TARGETS: dict[str, Target] = {
    "attention/query": Target(),
    "attention/key": Target(),
    "attention/value": Target(),
    "attention/out": Target(inputs=2),
    "mlp/gate": Target(),
    "mlp/up": Target(),
    "mlp/down": Target(),
    "moe/gate": Target(experts=1),
    "moe/up": Target(experts=1),
    "moe/down": Target(experts=1),
    "shared/gate": Target(),
    "shared/up": Target(),
    "shared/down": Target(),
}
ROLLOUTS = ("merged", "beside")


@dataclasses.dataclass
class LoraConfig:
    """Which matrices have adapters, and of what rank.

    Attributes:
        rank: r of every adapter whose target names none; 0 means that there are no adapters and that all parameters
            are trained.
        alpha: the product of an adapter is multiplied by alpha / its rank.
        targets: keys of `TARGETS`, each with a rank of its own where it ends in ":rank" ("moe/up:4"); () means all
            that the policy has.
        layers: which layers have adapters; () means all.
        rollout: what samples: "merged" matrices (a second copy of the parameters while it does) or adapters "beside"
            them, as in training. The two differ by rounding: in float32 by less than sampling and training do anyway,
            in bfloat16 by the rounding of the merged matrices, which shows in `gap/mean`.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    rollout: str = "merged"

    def validate(self, policy: Policy) -> None:
        """Raises ConfigError naming the field that cannot work for this policy."""
        errors.check_at_least("lora.rank", self.rank, 0)
        if not 0 < self.alpha < float("inf"):
            raise errors.ConfigError(f"lora.alpha={self.alpha} must be a positive number")
        errors.check_choice("lora.rollout", self.rollout, ROLLOUTS)
        if not self.rank:
            for name in ("targets", "layers"):
                if getattr(self, name):
                    raise errors.ConfigError(f"lora.{name}={getattr(self, name)} with lora.rank=0: set lora.rank too")
            return
        layers = policy.config.layers
        for layer in self.layers:
            if not 0 <= layer < layers:
                raise errors.ConfigError(f"lora.layers names layer {layer}; there are layers 0 to {layers - 1}")
        chosen = [_split_rank(target)[0] for target in self.targets]
        for target in chosen:
            errors.check_choice("lora.targets", target, available_targets(policy, self.layers))
        repeated = {target for target in chosen if chosen.count(target) > 1}
        if repeated:
            raise errors.ConfigError(f"lora.targets names {', '.join(sorted(repeated))} more than once")

    def ranks(self) -> dict[str, int]:
        """Returns the rank of each target."""
        named = dict(_split_rank(target) for target in self.targets or TARGETS)
        return {target: rank or self.rank for target, rank in named.items()}


def _split_rank(target: str) -> tuple[str, int]:
    """Splits "moe/up:4" into its name and its rank; 0 where it has none."""
    match = re.fullmatch(r"([^:]*)(?::([1-9]\d*))?", target)
    if match is None:
        raise errors.ConfigError(
            f"lora.targets names {target!r}; accepted: the name of a matrix, or name:rank with a rank of at least 1"
        )
    return match[1], int(match[2] or 0)


def available_targets(policy: Policy, layers: tuple[int, ...] = ()) -> list[str]:
    """Returns the keys of `TARGETS` that some of the layers (all for ()) of the policy have."""
    shapes = policy.abstract_params()
    of = [shapes[f"layer_{i}"] for i in layers or range(policy.config.layers)]
    had = {f"{module}/{name}" for layer in of for module, parameters in layer.items() for name in parameters}
    return [target for target in TARGETS if target in had]


class Place(NamedTuple):
    """One adapted matrix: `tree[layer][module][name]`, laid out as its `Target`, with an adapter of the rank."""

    layer: str
    module: str
    name: str
    target: Target
    rank: int

    def split(self, dims: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
        """Splits what belongs to the matrix's dimensions (sizes, axes) into (experts, in, out)."""
        experts, inputs = self.target
        return dims[:experts], dims[experts : experts + inputs], dims[experts + inputs :]


def places(config: LoraConfig, policy: Policy) -> Iterator[Place]:
    """Yields the matrices that the config gives adapters, layer by layer."""
    shapes = policy.abstract_params()
    for i in config.layers or range(policy.config.layers):
        for path, rank in config.ranks().items():
            module, name = path.split("/")
            if name in shapes[f"layer_{i}"].get(module, {}):
                yield Place(f"layer_{i}", module, name, TARGETS[path], rank)


def init_adapters(config: LoraConfig, policy: Policy, key: jax.Array) -> Params:
    """Returns adapters whose product is zero: a is normal with variance 1 / inputs (truncated), b is zero.

    The draw of a matrix depends on the key and on which matrix it is, not on which others have adapters.
    """
    shapes = policy.abstract_params()
    adapters: Params = {}
    for place in places(config, policy):
        experts, inputs, outputs = place.split(shapes[place.layer][place.module][place.name].shape)
        drawn = jax.random.fold_in(key, zlib.crc32("/".join(place[:3]).encode()))
        contracted = range(len(experts), len(experts) + len(inputs))
        a = fan_in(*contracted)(drawn, (*experts, *inputs, place.rank), jnp.float32)
        b = jnp.zeros((*experts, place.rank, *outputs), jnp.float32)
        adapters.setdefault(place.layer, {}).setdefault(place.module, {}).update(
            {place.name + LORA_A: a, place.name + LORA_B: b}
        )
    return adapters


def logical_axes(config: LoraConfig, policy: Policy) -> Params:
    """Returns the tree of logical-axes tuples of the adapters: the matrix's own, and the rank is not split."""
    axes = policy.logical_axes()
    tree: Params = {}
    for place in places(config, policy):
        experts, inputs, outputs = place.split(axes[place.layer][place.module][place.name])
        pair: dict[str, Axes] = {
            place.name + LORA_A: (*experts, *inputs, None),
            place.name + LORA_B: (*experts, None, *outputs),
        }
        tree.setdefault(place.layer, {}).setdefault(place.module, {}).update(pair)
    return tree


def scale(adapters: Params, alpha: float) -> Params:
    """Returns the adapters with alpha / r folded into b, as a policy runs with them: see `attach`."""
    tree = dict(adapters)
    for name, value in adapters.items():
        if isinstance(value, dict):
            tree[name] = scale(value, alpha)
        elif name.endswith(LORA_B):
            rank = adapters[name.removesuffix(LORA_B) + LORA_A].shape[-1]
            tree[name] = value * (alpha / rank)
    return tree


def attach(base: Params, scaled: Params) -> Params:
    """Returns the tree for `Policy.forward` with scaled adapters beside their matrices; nothing is copied."""
    tree = dict(base)
    for name, value in scaled.items():
        tree[name] = attach(base[name], value) if isinstance(value, dict) else value
    return tree


def merge(base: Params, adapters: Params, alpha: float) -> Params:
    """Returns the parameters with the product of each adapter added to its matrix; the others are the base's own."""

    def add(path: tuple[str, ...], base: Params, adapters: Params) -> Params:
        tree = dict(base)
        for name, value in adapters.items():
            if isinstance(value, dict):
                tree[name] = add((*path, name), base[name], value)
            elif name.endswith(LORA_A):
                matrix = name.removesuffix(LORA_A)
                target = TARGETS["/".join((*path[1:], matrix))]
                tree[matrix] = base[matrix] + product(value, adapters[matrix + LORA_B], alpha, target)
        return tree

    return add((), base, adapters)


def product(a: jax.Array, b: jax.Array, alpha: float, target: Target) -> jax.Array:
    """Returns (alpha / r) a b, laid out like the matrix; a is [experts..., in..., r], b [experts..., r, out...]."""
    multiply = functools.partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)
    for _ in range(target.experts):
        multiply = jax.vmap(multiply)
    out: jax.Array = multiply(a, b) * (alpha / a.shape[-1])
    return out
