"""What is trained, and what the policy runs with: all its parameters, or adapters beside frozen ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from rlvr import partition
from rlvr.policy import lora
from rlvr.policy.lora import LoraConfig
from rlvr.policy.transformer import Params, Policy


class Trainable(NamedTuple):
    """The tree that has gradients, optimizer state and checkpoints, and how the policy runs with it.

    Attributes:
        shapes: its shapes and dtypes.
        axes: its logical axes.
        frozen: parameters without gradients, given to every jitted step as an argument; None if there are none.
        join: maps (the trained tree, `frozen`) to the parameters for `Policy.forward`; differentiable, within a step.
        sampling: maps the trained tree to the parameters to sample with.
    """

    shapes: Params
    axes: Params
    frozen: Params | None
    join: Callable[[Params, Params | None], Params]
    sampling: Callable[[Params], Params]


def all_parameters(policy: Policy) -> Trainable:
    """Returns the trainable that is the policy's own parameters."""
    return Trainable(
        shapes=policy.abstract_params(),
        axes=policy.logical_axes(),
        frozen=None,
        join=lambda params, frozen: params,
        sampling=lambda params: params,
    )


def adapters_only(policy: Policy, config: LoraConfig, base: Params, mesh: Mesh) -> Trainable:
    """Returns the trainable that is the adapters of a frozen policy.

    Args:
        config: which matrices have adapters, and how the policy samples with them.
        base: the frozen parameters, on `mesh`.
    """

    def join(adapters: Params, frozen: Params | None) -> Params:
        assert frozen is not None
        return lora.attach(frozen, lora.scale(adapters, config.alpha))

    merge = jax.jit(
        functools.partial(lora.merge, alpha=config.alpha),
        out_shardings=partition.shardings(mesh, policy.logical_axes()),
    )
    axes = lora.logical_axes(config, policy)
    scale = jax.jit(functools.partial(lora.scale, alpha=config.alpha), out_shardings=partition.shardings(mesh, axes))
    sampling: dict[str, Callable[[Params], Params]] = {
        "merged": lambda adapters: merge(base, adapters),
        # Not jitted as a whole: a jitted function returns copies, and the base is as large as the device may hold.
        "beside": lambda adapters: lora.attach(base, scale(adapters)),
    }
    return Trainable(
        shapes=jax.eval_shape(lambda key: lora.init_adapters(config, policy, key), jax.random.key(0)),
        axes=axes,
        frozen=base,
        join=join,
        sampling=sampling[config.rollout],
    )
