"""Updates of adapters: they alone change, alone have optimizer state, and split over a mesh as on one device."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from rlvr import partition
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.learner.batch import Row
from rlvr.learner.learner import Learner
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.trainable import Trainable, adapters_only, all_parameters
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import AXES, MeshConfig, make_mesh
from rlvr.policy import lora
from rlvr.policy.config import PolicyConfig
from rlvr.policy.lora import LoraConfig
from rlvr.policy.transformer import Policy

POLICY = Policy(
    PolicyConfig(
        vocab_size=98,
        dim=48,
        layers=2,
        query_heads=4,
        kv_heads=2,
        head_size=10,
        hidden=56,
        moe_layers=(1,),
        experts=8,
        expert_hidden=40,
    )
)
LORA = LoraConfig(rank=3, alpha=6.0, targets=("attention/query", "attention/out", "mlp/down", "moe/up", "moe/down:2"))
OBJECTIVE = ObjectiveConfig(kl="k2", kl_coef=0.05, balance_coef=0.1)


def make_learner(trainable: Trainable, optimizer: OptimizerConfig, mesh: Mesh) -> Learner:
    return Learner(
        POLICY,
        OBJECTIVE,
        optimizer,
        UpdateConfig(row_tokens=16, micro_tokens=128, logprob_chunk=32),
        steps=10,
        max_length=14,
        max_columns=8,
        temperature=0.8,
        mesh=mesh,
        trainable=trainable,
    )


def random_adapters() -> Any:
    rng = np.random.default_rng(4)
    shapes = jax.eval_shape(lambda: lora.init_adapters(LORA, POLICY, jax.random.key(0)))
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.2, shapes)


@pytest.fixture(scope="module")
def work(
    make_rows: Callable[..., list[Row]], descent: OptimizerConfig, params_of: Callable[[Policy], Any]
) -> Callable[[str], dict[str, Any]]:
    """Scores and one update of adapters on a mesh, as host arrays."""
    rows, base, adapters = make_rows(16, vocab=98), jax.device_get(params_of(POLICY)), random_adapters()

    @functools.cache
    def run(name: str) -> dict[str, Any]:
        if name == "one":
            mesh = jax.make_mesh((1,) * 4, AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:1])
        else:
            mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2))
        with jax.set_mesh(mesh):
            frozen = jax.tree.map(jax.device_put, base, partition.shardings(mesh, POLICY.logical_axes()))
            trainable = adapters_only(POLICY, LORA, frozen, mesh)
            placed = jax.tree.map(jax.device_put, adapters, partition.shardings(mesh, trainable.axes))
            learner = make_learner(trainable, descent, mesh)
            merged = trainable.sampling(placed)
            whole = make_learner(all_parameters(POLICY), descent, mesh)
            out = {"scores": learner.score(placed, rows), "merged_scores": whole.score(merged, rows)}
            reference = [np.asarray(row.old_logprobs) - 0.1 for row in rows]
            wanted = learner.abstract()
            state, read = learner.update(learner.fresh(placed), rows, reference)
            out["metrics"] = read()
            same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s.sharding, x.ndim), state, wanted)
            out["placed"] = all(jax.tree.leaves(same))
            out["step"] = jax.tree.map(np.subtract, jax.device_get(state.params), adapters)
            out["frozen"] = jax.device_get(trainable.frozen)  # a donated array could not be read
            full, _ = whole.update(whole.fresh(merged), rows, reference)
            out["full_step"] = jax.tree.map(np.subtract, jax.device_get(full.params), jax.device_get(base))
        return out

    return run


def test_adapters_alone_change(work: Callable[[str], dict[str, Any]], params_of: Callable[[Policy], Any]) -> None:
    out = work("one")
    jax.tree.map(np.testing.assert_array_equal, out["frozen"], jax.device_get(params_of(POLICY)))
    assert all(np.max(np.abs(step)) > 1e-6 for step in jax.tree.leaves(out["step"]))
    for beside, merged in zip(out["scores"], out["merged_scores"], strict=True):
        np.testing.assert_allclose(beside, merged, atol=2e-5)


def test_an_adapters_step_is_the_chain_rule_of_its_matrix(work: Callable[[str], dict[str, Any]]) -> None:
    """W = W0 + s a b: the gradient of b is s a' G and that of a is s G b', with G the gradient of full training."""
    out, adapters = work("one"), random_adapters()
    change = jax.tree.map(np.subtract, out["full_step"], jax.device_get(merged_change(adapters)))
    for layer, module, name, spec in (
        ("layer_0", "attention", "query", ("DHh,rHh->Dr", "Dr,DHh->rHh")),
        ("layer_1", "attention", "out", ("HhD,rD->Hhr", "Hhr,HhD->rD")),
        ("layer_1", "moe", "down", ("eio,ero->eir", "eir,eio->ero")),
    ):
        pairs, g = adapters[layer][module], change[layer][module][name]
        a, b = pairs[f"{name}_lora_a"], pairs[f"{name}_lora_b"]
        expected = [6.0 / a.shape[-1] * np.einsum(s, *x) for s, x in zip(spec, ((g, b), (a, g)), strict=True)]
        for end, value in zip(("_lora_a", "_lora_b"), expected, strict=True):
            found = out["step"][layer][module][name + end]
            np.testing.assert_allclose(found, value, atol=0.02 * np.max(np.abs(value)))


def merged_change(adapters: Any) -> Any:
    """What merging adds to every parameter."""
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), POLICY.abstract_params())
    return lora.merge(zeros, adapters, LORA.alpha)


def test_a_mesh_changes_nothing_but_rounding(work: Callable[[str], dict[str, Any]]) -> None:
    one, many = work("one"), work("mesh")
    assert one["placed"] and many["placed"]
    for name, value in one["metrics"].items():
        np.testing.assert_allclose(many["metrics"][name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    for a, b in zip(one["scores"], many["scores"], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * float(np.max(np.abs(a)))),
        one["step"],
        many["step"],
    )


def test_optimizer_state_is_two_numbers_for_each_of_the_adapters(params_of: Callable[[Policy], Any]) -> None:
    mesh = jax.make_mesh((1,) * 4, AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:1])
    # Both layers 48 x 3 + 3 x 40 and 40 x 3 + 3 x 48; the dense 56 x 3 + 3 x 48; the experts' 8 times each.
    numbers = 2 * (264 + 264) + 312 + 8 * (48 * 3 + 3 * 40) + 8 * (40 * 2 + 2 * 48)

    def sizes(tree: Any) -> list[int]:
        return sorted(int(leaf.size) for leaf in jax.tree.leaves(tree))

    with jax.set_mesh(mesh):
        learner = make_learner(adapters_only(POLICY, LORA, params_of(POLICY), mesh), OptimizerConfig(), mesh)
        state = learner.abstract()
        fresh = learner.fresh(random_adapters())
    assert sum(sizes(state.params)) == numbers
    arrays, scalars = ([s for s in sizes(state.opt_state) if (s > 1) == many] for many in (True, False))
    assert sum(arrays) == 2 * numbers and sum(scalars) < 10  # Adam's moments, and a few counters
    assert sizes(fresh.opt_state) == sizes(state.opt_state)
