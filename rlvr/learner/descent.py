"""The optimizer's step, one part of the parameters (a layer, the embedding) after another.

A part's step is a program of its own: layers of one shape share it, and the moments of a part that rest in the host's
memory (`rlvr.learner.update.UpdateConfig`) are on the device only while it runs. In one program for all parts XLA's TPU
compiler fetches all moments before the first is used (BUILD.md).
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from rlvr.learner.optimizer import Survey
from rlvr.policy.transformer import Params

# Every part has this name in its program.
_PART = "part"


def _is_mirror(tree: Any) -> bool:
    """Whether a subtree of the optimizer's state is one that mirrors the parameters: those alone are dicts."""
    return isinstance(tree, dict)


def part_of(tree: Any, name: str) -> Any:
    """Returns what belongs to one part: of the parameters, of the optimizer's state, or of their shardings."""
    return jax.tree.map(lambda x: {_PART: x[name]} if _is_mirror(x) else x, tree, is_leaf=_is_mirror)


def join_parts(parts: Mapping[str, Any]) -> Any:
    """Returns the tree of which `part_of` gave the parts; what all parts have is the first one's."""

    def join(*own: Any) -> Any:
        return {name: x[_PART] for name, x in zip(parts, own, strict=True)} if _is_mirror(own[0]) else own[0]

    return jax.tree.map(join, *parts.values(), is_leaf=_is_mirror)


class Descent(NamedTuple):
    """An optimizer's step as a function of (params, opt_state, gradients, survey), which consumes the first two.

    Attributes:
        move: the program of a part: (params, mirrors, rest, gradients, survey, shardings) -> (params, mirrors, rest).
            `mirrors` are the subtrees of the optimizer's state that mirror the parameters, `rest` is the state without
            them; `shardings`, of (params, mirrors), are a `_Static`.
        shardings: of (params, opt_state), or None: as XLA likes it.
    """

    move: Any
    shardings: tuple[Params, Any] | None

    def __call__(self, params: Params, opt_state: Any, gradients: Params, survey: Survey) -> tuple[Params, Any]:
        """Takes the step; returns (params, opt_state)."""
        moved = {name: self.move(*self._arguments(name, params, opt_state, gradients, survey)) for name in params}
        states = {name: _fill(rest, mirrors) for name, (_, mirrors, rest) in moved.items()}
        return join_parts({name: own for name, (own, _, _) in moved.items()}), join_parts(states)

    def lower(self, params: Params, opt_state: Any, gradients: Params, survey: Survey) -> list[tuple[Any, int]]:
        """Returns the lowered programs of the parts, of shapes with shardings, each with how many parts have it."""
        alike: dict[Any, list[str]] = collections.defaultdict(list)
        for name in params:
            leaves, structure = jax.tree.flatten(part_of((params, opt_state), name))
            alike[structure, tuple((x.shape, x.dtype, x.sharding) for x in leaves)].append(name)
        return [
            (self.move.lower(*self._arguments(names[0], params, opt_state, gradients, survey)), len(names))
            for names in alike.values()
        ]

    def _arguments(self, name: str, params: Params, opt_state: Any, gradients: Params, survey: Survey) -> list[Any]:
        own_params, own_gradients, own_state = (part_of(tree, name) for tree in (params, gradients, opt_state))
        shardings = None
        if self.shardings is not None:
            own, state = (part_of(tree, name) for tree in self.shardings)
            shardings = _Static((own, _mirrors(state)))
        return [own_params, _mirrors(own_state), _hollow(own_state), own_gradients, survey, shardings]


def make_descent(
    optimizer: optax.GradientTransformationExtraArgs, shardings: tuple[Params, Any] | None = None
) -> Descent:
    """Returns the step of an optimizer.

    Args:
        shardings: of (params, opt_state), with the memory where the moments rest; by default as XLA likes it.
    """

    def move(
        params: Params, mirrors: list[Any], rest: Any, gradients: Params, survey: Survey, shardings: _Static | None
    ) -> tuple[Params, list[Any], Any]:
        if shardings is not None:
            mirrors = [jax.device_put(mirror, shardings.tree[0]) for mirror in mirrors]
        updates, state = optimizer.update(gradients, _fill(rest, mirrors), params, survey=survey)
        params, mirrors = optax.apply_updates(params, updates), _mirrors(state)
        if shardings is not None:
            own, resting = shardings.tree
            params = jax.lax.with_sharding_constraint(params, own)
            mirrors = [jax.lax.with_sharding_constraint(mirror, own) for mirror in mirrors]
            mirrors = jax.device_put(mirrors, resting)
        return params, mirrors, _hollow(state)

    return Descent(jax.jit(move, donate_argnums=(0, 1), static_argnums=5), shardings)


class _Static:
    """A tree that is a static argument of a jitted function."""

    def __init__(self, tree: Any):
        self.tree = tree
        leaves, structure = jax.tree.flatten(tree)
        self._key = (tuple(leaves), structure)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self._key == other._key


def _mirrors(state: Any) -> list[Any]:
    """Returns the subtrees of an optimizer's state that mirror the parameters."""
    return [x for x in jax.tree.leaves(state, is_leaf=_is_mirror) if _is_mirror(x)]


def _hollow(state: Any) -> Any:
    """Returns an optimizer's state with None for each of its mirrors."""
    return jax.tree.map(lambda x: None if _is_mirror(x) else x, state, is_leaf=_is_mirror)


def _fill(rest: Any, mirrors: list[Any]) -> Any:
    """Undoes `_hollow`."""
    left = iter(mirrors)
    return jax.tree.map(lambda x: next(left) if x is None else x, rest, is_leaf=lambda x: x is None)
