"""The optimizer's step in parts: optax's own step of the whole, wherever the moments rest."""

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from rlvr import errors, partition
from rlvr.learner.descent import join_parts, make_descent, part_of
from rlvr.learner.optimizer import OptimizerConfig, make_optimizer, make_schedule, take_survey
from rlvr.learner.state import abstract_state, fresh_state, state_sharding_tree
from rlvr.learner.trainable import Trainable
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import MeshConfig, make_mesh

AXES: dict[str, Any] = {
    "embed": {"table": ("vocab", "embed")},
    "layer_0": {"up": ("embed", "hidden"), "scale": (None,)},
    "layer_1": {"up": ("embed", "hidden"), "scale": (None,)},
}
SIZES = {"table": (16, 8), "up": (8, 32), "scale": (5,)}
SHAPES = {part: {name: jax.ShapeDtypeStruct(SIZES[name], jnp.float32) for name in own} for part, own in AXES.items()}
TRAINED = Trainable(SHAPES, AXES, None, lambda params, frozen: params, lambda params: params)
CONFIG = OptimizerConfig(learning_rate=0.1, warmup_steps=2, weight_decay=0.1, max_grad_norm=2.0)


def draw(seed: int, scale: float = 1.0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: (scale * rng.normal(size=s.shape)).astype(np.float32), SHAPES)


def gradients() -> list[Any]:
    """Of four steps: clipped, not clipped, with an infinite entry in one part, and again good."""
    steps = [draw(1), draw(2, 0.01), draw(3), draw(4)]
    steps[2]["layer_1"]["scale"][3] = np.inf
    return steps


def placed(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(jax.device_put, tree, partition.shardings(mesh, AXES))


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def descend(mesh: Mesh) -> Callable[[str], tuple[Any, Any, int]]:
    """Takes the four steps with the moments in a memory; returns (params, opt_state, programs traced)."""

    def run(memory: str) -> tuple[Any, Any, int]:
        optimizer = make_optimizer(CONFIG, 10)
        update = mock.Mock(side_effect=optimizer.update)  # called only while a program is traced
        optimizer = optimizer._replace(update=update)
        with jax.set_mesh(mesh):
            shardings = state_sharding_tree(TRAINED, optimizer, mesh, memory)
            descent = make_descent(optimizer, (shardings.params, shardings.opt_state))
            params, opt_state, _ = fresh_state(TRAINED, optimizer, placed(draw(0), mesh), mesh, memory)
            for own in gradients():
                own = placed(own, mesh)
                params, opt_state = descent(params, opt_state, own, jax.jit(take_survey)(own))
        return params, opt_state, update.call_count

    return run


def test_parts_together_take_the_step_of_the_whole(descend: Callable[[str], tuple[Any, Any, int]]) -> None:
    whole = optax.apply_if_finite(
        optax.chain(
            optax.clip_by_global_norm(CONFIG.max_grad_norm),
            optax.adamw(
                make_schedule(CONFIG, 10), b1=CONFIG.b1, b2=CONFIG.b2, eps=CONFIG.epsilon,
                weight_decay=CONFIG.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
            ),
        ),
        max_consecutive_errors=10,
    )  # fmt: skip
    wanted = draw(0)
    state = whole.init(wanted)
    for own in gradients():
        updates, state = whole.update(own, state, wanted)
        wanted = optax.apply_updates(wanted, updates)
    params, opt_state, programs = descend("device")
    assert state.total_notfinite == 1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), (params, opt_state), (wanted, state)
    )
    assert str(jax.tree.structure(opt_state)) == str(jax.tree.structure(state))
    assert programs == 2  # the layers are alike


def test_moments_on_the_host_change_no_bit(descend: Callable[[str], tuple[Any, Any, int]], mesh: Mesh) -> None:
    near, far = (descend(memory)[:2] for memory in ("device", "host"))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), near, far)
    (adam, *_) = far[1].inner_state[1]
    for moments in (adam.mu, adam.nu):
        for name, leaf in jax.tree_util.tree_leaves_with_path(moments):
            assert leaf.sharding.memory_kind == "pinned_host", name
        assert not moments["layer_0"]["up"].is_fully_replicated
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves((far[0], adam.count))} == {"device"}
    expected = abstract_state(TRAINED, make_optimizer(CONFIG, 10), mesh, "host")
    for have, want in zip(jax.tree.leaves(far[1]), jax.tree.leaves(expected.opt_state), strict=True):
        assert have.sharding.is_equivalent_to(want.sharding, have.ndim)
        assert have.sharding.memory_kind == want.sharding.memory_kind


def test_lanes_side_by_side_under_one_jit_take_their_own_steps() -> None:
    def step(limit: Any, params: Any, own: Any) -> Any:
        optimizer = make_optimizer(dataclasses.replace(CONFIG, max_grad_norm=limit), 10)
        return make_descent(optimizer)(params, optimizer.init(params), own, take_survey(own))

    limits, params, own = jnp.array([0.5, 1e9, 2.0]), [draw(seed) for seed in (0, 1, 2)], gradients()[:3]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *zip(params, own, strict=True))
    lanes = jax.jit(jax.vmap(step))(limits, *stacked)
    assert list(lanes[1].last_finite) == [True, True, False]
    for lane, given in enumerate(zip(limits, params, own, strict=True)):
        alone = jax.jit(step)(*given)
        jax.tree.map(lambda a, b, i=lane: np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-8), lanes, alone)


def test_parts_are_what_they_were_taken_from() -> None:
    state = make_optimizer(CONFIG, 10).init(draw(0))
    again = join_parts({name: part_of(state, name) for name in SHAPES})
    jax.tree.map(np.testing.assert_array_equal, state, again)
    assert str(jax.tree.structure(state)) == str(jax.tree.structure(again))


def test_a_memory_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.ConfigError, match=r"update.moments='disk'.*device, host"):
        UpdateConfig(moments="disk").validate("update")
    one = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    partition.check_memory("update.moments", "host", one)
    monkeypatch.setitem(partition.MEMORIES, "host", "drum")
    with pytest.raises(errors.ConfigError, match=r"update.moments='host' needs devices with the memory 'drum'"):
        partition.check_memory("update.moments", "host", one)
