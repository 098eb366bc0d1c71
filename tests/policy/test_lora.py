"""Adapters: beside the matrices, merged into them, and by hand in numpy; what they are made of, and how they split."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import Mesh

from rlvr import errors, partition
from rlvr.mesh import AXES, MeshConfig, make_mesh
from rlvr.policy import lora
from rlvr.policy.backends import BACKENDS
from rlvr.policy.experts import Experts, Projection
from rlvr.policy.lora import LoraConfig
from rlvr.policy.transformer import Policy
from tests.policy.test_moe import CONFIG, GATES, D, E, F, N, X, distinct_choices

Tiny = Callable[[str], tuple[Policy, Any]]
ALPHA = 5.0


def random_adapters(config: LoraConfig, policy: Policy) -> Any:
    """Adapters whose product is as large as the matrices."""
    rng = np.random.default_rng(11)
    shapes = jax.eval_shape(lambda: lora.init_adapters(config, policy, jax.random.key(0)))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.2, jnp.float32), shapes)


def shared_policy(params_of: Callable[[Policy], Any], tiny_policy: Tiny) -> tuple[Policy, Any]:
    """A dense layer and a mixture with a shared expert: every target there is."""
    policy = Policy(dataclasses.replace(tiny_policy("mixed")[0].config, shared_hidden=12))
    return policy, params_of(policy)


def logits(policy: Policy, params: Any) -> jax.Array:
    tokens = jnp.asarray(np.random.default_rng(5).integers(0, 97, size=(4, 9)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(9), tokens.shape)
    return policy.logits(params, policy.forward(params, tokens, positions).hidden)


def product(a: np.ndarray, b: np.ndarray, path: str) -> np.ndarray:
    """(alpha / r) a b in float64, index by index of the letters of each matrix."""
    letters = {"attention/out": "Hhr,rD->HhD", "query": "Dr,rHh->DHh", "key": "Dr,rHh->DHh", "value": "Dr,rHh->DHh"}
    module, name = path.split("/")
    spec = letters.get(path) or letters.get(name) or ("eir,ero->eio" if module == "moe" else "ir,ro->io")
    return ALPHA / a.shape[-1] * np.einsum(spec, np.asarray(a, np.float64), np.asarray(b, np.float64))


def merged_by_hand(base: Any, adapters: Any) -> Any:
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), base)
    for layer, modules in adapters.items():
        for module, pairs in modules.items():
            for name in {name.split("_lora_")[0] for name in pairs}:
                a, b = pairs[f"{name}_lora_a"], pairs[f"{name}_lora_b"]
                tree[layer][module][name] = tree[layer][module][name] + product(a, b, f"{module}/{name}")
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def test_every_target_has_an_adapter_of_its_shape(params_of: Any, tiny_policy: Tiny) -> None:
    policy, _ = shared_policy(params_of, tiny_policy)
    adapters = jax.eval_shape(lambda: lora.init_adapters(LoraConfig(rank=3), policy, jax.random.key(0)))
    homes = {"mlp": "layer_0"}
    shapes = {}
    for path in lora.TARGETS:
        module, name = path.split("/")
        pairs = adapters[homes.get(module, "layer_1")][module]
        shapes[path] = (pairs[f"{name}_lora_a"].shape, pairs[f"{name}_lora_b"].shape)
    assert shapes == {  # D 48, H 6, K 2, h 10, F 56, 40 and 12, E 8
        "attention/query": ((48, 3), (3, 6, 10)),
        "attention/key": ((48, 3), (3, 2, 10)),
        "attention/value": ((48, 3), (3, 2, 10)),
        "attention/out": ((6, 10, 3), (3, 48)),
        "mlp/gate": ((48, 3), (3, 56)),
        "mlp/up": ((48, 3), (3, 56)),
        "mlp/down": ((56, 3), (3, 48)),
        "moe/gate": ((8, 48, 3), (8, 3, 40)),
        "moe/up": ((8, 48, 3), (8, 3, 40)),
        "moe/down": ((8, 40, 3), (8, 3, 48)),
        "shared/gate": ((48, 3), (3, 12)),
        "shared/up": ((48, 3), (3, 12)),
        "shared/down": ((12, 3), (3, 48)),
    }
    assert sorted(adapters) == ["layer_0", "layer_1"]


def test_targets_layers_and_ranks_choose(params_of: Any, tiny_policy: Tiny) -> None:
    policy, _ = shared_policy(params_of, tiny_policy)
    config = LoraConfig(rank=3, targets=("attention/query", "moe/up:5"), layers=(1,))
    adapters = jax.eval_shape(lambda: lora.init_adapters(config, policy, jax.random.key(0)))
    assert jax.tree.map(lambda s: s.shape, adapters) == {
        "layer_1": {
            "attention": {"query_lora_a": (48, 3), "query_lora_b": (3, 6, 10)},
            "moe": {"up_lora_a": (8, 48, 5), "up_lora_b": (8, 5, 40)},
        }
    }


def test_the_draw_of_a_matrix_depends_on_nothing_but_the_key_and_the_matrix(params_of: Any, tiny_policy: Tiny) -> None:
    policy, _ = shared_policy(params_of, tiny_policy)
    key = jax.random.key(3)
    every = lora.init_adapters(LoraConfig(rank=4), policy, key)
    some = lora.init_adapters(LoraConfig(rank=4, targets=("attention/out",), layers=(1,)), policy, key)
    np.testing.assert_array_equal(
        some["layer_1"]["attention"]["out_lora_a"], every["layer_1"]["attention"]["out_lora_a"]
    )
    drawn = [np.asarray(x).ravel()[:4] for p, x in jax.tree_util.tree_leaves_with_path(every) if "lora_a" in str(p)]
    assert len({tuple(x) for x in drawn}) == len(drawn) == 7 + 10
    experts = np.asarray(every["layer_1"]["moe"]["down_lora_a"])
    assert experts.std() == pytest.approx(40**-0.5, rel=0.1)  # 1 / inputs of one expert, not of all
    assert np.asarray(every["layer_0"]["attention"]["out_lora_a"]).std() == pytest.approx(60**-0.5, rel=0.2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fresh_adapter_changes_not_one_bit(dtype: str, params_of: Any, tiny_policy: Tiny) -> None:
    policy, params = shared_policy(params_of, tiny_policy)
    policy = Policy(dataclasses.replace(policy.config, dtype=dtype))
    adapters = jax.jit(lambda key: lora.init_adapters(LoraConfig(rank=2), policy, key))(jax.random.key(1))
    run = jax.jit(lambda params: logits(policy, params))
    base = run(params)
    np.testing.assert_array_equal(run(lora.attach(params, lora.scale(adapters, ALPHA))), base)
    merged = lora.merge(params, adapters, ALPHA)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_nothing_of_the_base_is_copied_and_no_adapters_is_the_base(tiny_policy: Tiny) -> None:
    policy, params = tiny_policy("mixed")
    adapters = random_adapters(LoraConfig(rank=2, targets=("mlp/up",)), policy)
    for tree in (lora.attach(params, adapters), lora.merge(params, adapters, ALPHA)):
        assert tree["layer_0"]["attention"]["query"] is params["layer_0"]["attention"]["query"]
        assert tree["layer_1"] is params["layer_1"]
    assert lora.attach(params, adapters)["layer_0"]["mlp"]["up"] is params["layer_0"]["mlp"]["up"]
    jax.tree.map(np.testing.assert_array_equal, lora.attach(params, {}), params)


@pytest.mark.parametrize(("backend", "remat"), [("blocked", "none"), ("ragged", "none"), ("dense", "block")])
def test_beside_merged_and_by_hand_agree(backend: str, remat: str, params_of: Any, tiny_policy: Tiny) -> None:
    policy, params = shared_policy(params_of, tiny_policy)
    policy = Policy(dataclasses.replace(policy.config, moe_backend=backend, remat=remat))
    adapters = random_adapters(LoraConfig(rank=3, targets=(*list(lora.TARGETS)[:-1], "shared/down:6")), policy)
    run = jax.jit(lambda params: logits(policy, params))
    base = run(params)
    expected = run(merged_by_hand(params, adapters))
    assert np.max(np.abs(expected - base)) > 1.0  # they matter
    np.testing.assert_allclose(run(lora.attach(params, lora.scale(adapters, ALPHA))), expected, atol=5e-4)
    np.testing.assert_allclose(run(lora.merge(params, adapters, ALPHA)), expected, atol=5e-4)


def test_gradients_beside_are_those_through_the_merge(params_of: Any, tiny_policy: Tiny) -> None:
    policy, params = shared_policy(params_of, tiny_policy)
    adapters = random_adapters(LoraConfig(rank=3), policy)

    def loss(adapters: Any, join: Callable[..., Any]) -> jax.Array:
        return jnp.mean(jax.nn.log_softmax(logits(policy, join(params, adapters)))[..., 7])

    beside = jax.jit(jax.grad(lambda x: loss(x, lambda base, x: lora.attach(base, lora.scale(x, ALPHA)))))(adapters)
    merged = jax.jit(jax.grad(lambda x: loss(x, lambda base, x: lora.merge(base, x, ALPHA))))(adapters)

    def close(path: Any, a: jax.Array, b: jax.Array) -> None:
        largest = float(np.max(np.abs(b)))
        assert largest > 1e-6, path
        np.testing.assert_allclose(a, b, atol=2e-4 * largest, err_msg=str(path))

    jax.tree_util.tree_map_with_path(close, beside, merged)


@pytest.mark.parametrize("name", BACKENDS)
def test_an_expert_uses_its_own_adapter(name: str) -> None:
    """The oracle is a loop over tokens in float64; the shard holds experts 3 to 5 only."""
    rng = np.random.default_rng(2)
    shapes = {"gate": (D, F), "up": (D, F), "down": (F, D)}
    w = {n: rng.normal(size=(E, *s)) * 0.3 for n, s in shapes.items()}
    a = {n: rng.normal(size=(E, s[0], 3)) * 0.3 for n, s in shapes.items()}
    b = {n: rng.normal(size=(E, 3, s[1])) * 0.3 for n, s in shapes.items()}
    here = slice(3, 6)
    weights = Experts(
        *(
            Projection(*(None if x is None else jnp.asarray(x[n][here], jnp.float32) for x in (w, None, a, b)))
            for n in shapes
        )
    )
    choices = distinct_choices(4)
    full = {n: w[n] + np.einsum("eir,ero->eio", a[n], b[n]) for n in shapes}
    expected = np.zeros((N, D))
    for n, j in np.ndindex(choices.shape):
        e = choices[n, j]
        if 3 <= e < 6:
            g = X[n].astype(np.float64) @ full["gate"][e]
            hidden = g * scipy.special.expit(g) * (X[n] @ full["up"][e])
            expected[n] += GATES[n, j] * (hidden @ full["down"][e])
    out = BACKENDS[name](jnp.asarray(X), jnp.asarray(choices), jnp.asarray(GATES), weights, jnp.int32(3), CONFIG)
    np.testing.assert_allclose(out, expected, atol=2e-4)


MESHES = {
    "fsdp_expert_tensor": MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
    "expert_tensor": MeshConfig(data=1, expert=4, tensor=2),
}


@pytest.fixture(scope="module")
def work(params_of: Any, tiny_policy: Tiny) -> Callable[[Mesh], Any]:
    """Logits beside and merged, and gradients of the adapters, on a mesh; as host arrays."""
    policy, _ = shared_policy(params_of, tiny_policy)
    policy = Policy(dataclasses.replace(policy.config, vocab_size=98, expert_bias=True))
    params, config = params_of(policy), LoraConfig(rank=3)
    adapters = random_adapters(config, policy)

    def loss(adapters: Any, base: Any) -> tuple[jax.Array, jax.Array]:
        out = logits(policy, lora.attach(base, lora.scale(adapters, ALPHA)))
        return jnp.mean(jax.nn.log_softmax(out)[..., 7]), out

    @functools.cache
    def run(mesh: Mesh) -> Any:
        with jax.set_mesh(mesh):
            axes = (lora.logical_axes(config, policy), policy.logical_axes())
            placed, base = (
                jax.tree.map(jax.device_put, tree, partition.shardings(mesh, a))
                for tree, a in zip((adapters, params), axes, strict=True)
            )
            (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(placed, base)
            merged = jax.jit(lambda base, x: logits(policy, lora.merge(base, x, ALPHA)))(base, placed)
        return jax.device_get((out, merged, gradients))

    return run


@pytest.mark.parametrize("shape", MESHES)
def test_a_mesh_changes_nothing_but_rounding(shape: str, work: Callable[[Mesh], Any]) -> None:
    one = work(
        jax.make_mesh((1, 1, 1, 1), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4, devices=jax.devices()[:1])
    )
    many = work(make_mesh(MESHES[shape]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=2e-4 * float(np.max(np.abs(a)))), one, many)


def test_adapters_split_like_their_matrices(params_of: Any, tiny_policy: Tiny) -> None:
    policy, _ = shared_policy(params_of, tiny_policy)
    config = LoraConfig(rank=2)
    axes = lora.logical_axes(config, policy)
    assert axes["layer_1"]["moe"]["down_lora_a"] == ("experts", "expert_hidden", None)
    assert axes["layer_1"]["moe"]["down_lora_b"] == ("experts", None, "embed")
    assert axes["layer_0"]["attention"]["out_lora_a"] == ("query_heads", None, None)
    assert axes["layer_0"]["attention"]["key_lora_b"] == (None, "kv_heads", None)
    mesh = make_mesh(MESHES["fsdp_expert_tensor"])
    shardings = partition.shardings(mesh, axes)
    init = lambda key: lora.init_adapters(config, policy, key)  # noqa: E731
    split = jax.jit(init, out_shardings=shardings)(jax.random.key(3))
    assert split["layer_1"]["moe"]["down_lora_a"].addressable_shards[0].data.shape == (4, 20, 2)
    jax.tree.map(np.testing.assert_array_equal, split, jax.jit(init)(jax.random.key(3)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(rank=-1), r"lora\.rank=-1 must be at least 0"),
        (LoraConfig(rank=2, alpha=0.0), r"lora\.alpha=0\.0 must be a positive number"),
        (LoraConfig(rank=2, alpha=float("nan")), r"lora\.alpha=nan"),
        (LoraConfig(rank=2, rollout="merge"), r"lora\.rollout='merge' .*did you mean 'merged'\?"),
        (LoraConfig(targets=("mlp/up",)), r"lora\.targets=\('mlp/up',\) with lora\.rank=0"),
        (LoraConfig(layers=(0,)), r"lora\.layers=\(0,\) with lora\.rank=0"),
        (LoraConfig(rank=2, layers=(2,)), r"lora\.layers names layer 2; there are layers 0 to 1"),
        (LoraConfig(rank=2, targets=("atention/query",)), r"lora\.targets='atention/query'.*mean 'attention/query'\?"),
        (LoraConfig(rank=2, targets=("shared/up",)), r"lora\.targets='shared/up' is not known.*accepted: attention"),
        (LoraConfig(rank=2, targets=("moe/up",), layers=(0,)), r"lora\.targets='moe/up'.*\(accepted: .*mlp/down\)"),
        (LoraConfig(rank=2, targets=("mlp/up:0",)), r"lora\.targets names 'mlp/up:0'; accepted: .*at least 1"),
        (LoraConfig(rank=2, targets=("mlp/up", "mlp/up:3")), r"lora\.targets names mlp/up more than once"),
    ],
)
def test_what_cannot_work_is_refused(config: LoraConfig, message: str, tiny_policy: Tiny) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        config.validate(tiny_policy("mixed")[0])


def test_what_can_work_is_not(tiny_policy: Tiny) -> None:
    policy = tiny_policy("mixed")[0]
    LoraConfig().validate(policy)
    LoraConfig(rank=2, targets=("moe/up:4", "attention/out"), layers=(1,), rollout="beside").validate(policy)
