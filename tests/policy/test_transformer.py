"""The policy as a function: what it must not depend on, and that its parameters know their axes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import errors, partition
from rlvr.policy.cache import Cache, Prefix, admit, duplicate, make_pages
from rlvr.policy.config import REMATS, PolicyConfig
from rlvr.policy.transformer import Output, Policy

KINDS = ("dense", "mixed")
LENGTH = 18
PROMPTS = np.array([9, 5, 1])
LENGTHS = np.array([18, 11, 4])
TOKENS = np.random.default_rng(0).integers(0, 97, size=(3, LENGTH)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), TOKENS.shape)
Tiny = Callable[[str], tuple[Policy, Any]]
Forward = Callable[..., Output]


@pytest.fixture(scope="module")
def jitted() -> Callable[[Policy], Forward]:
    """Returns the compiled forward of a policy: one for the module, since compiling takes longer than all else."""
    return functools.cache(lambda policy: jax.jit(policy.forward))


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_through_the_cache_is_the_full_forward(tiny_policy: Tiny, jitted: Any, kind: str) -> None:
    policy, params = tiny_policy(kind)
    forward = jitted(policy)
    expected = forward(params, TOKENS, POSITIONS).hidden
    # Prefill pads every prompt to the longest; the padding's entries are overwritten as the rows grow.
    width, size = PROMPTS.max(), 4
    prompts = np.where(np.arange(width) < PROMPTS[:, None], TOKENS[:, :width], 0)
    prefill = jax.jit(functools.partial(policy.forward, keep=True))(params, prompts, POSITIONS[:, :width])
    for row, count in enumerate(PROMPTS):
        np.testing.assert_allclose(prefill.hidden[row, :count], expected[row, :count], atol=2e-5)
    # The pages of a row lie anywhere, and two pools (of one device here) hold a row and two.
    pages = np.random.default_rng(1).permutation(11)[:10].reshape(2, 5).astype(np.int32)
    for rows, shards in (([0], 1), ([1, 2], 1), ([1, 2], 2)):
        table = np.stack([pages[: len(rows)]]) if shards == 1 else pages[:, None]
        layers = make_pages(policy.config, shards, 11, size)
        blocks = -(-width // size)
        moves = [(row, block, i // (len(rows) // shards), table.reshape(len(rows), 5)[i, block])
                 for i, row in enumerate(rows) for block in range(blocks)]  # fmt: skip
        assert prefill.prefix is not None
        cache = Cache(admit(layers, prefill.prefix, *np.array(moves, np.int32).T), jnp.asarray(table))
        for i in range(LENGTH - width):
            at = PROMPTS[rows] + i
            output = forward(params, TOKENS[rows, at][:, None], at[:, None], cache)
            cache = output.cache
            np.testing.assert_allclose(output.hidden[:, 0], expected[rows, at], atol=2e-5)


def test_several_tokens_at_once_through_the_cache_are_the_full_forward(tiny_policy: Tiny, jitted: Any) -> None:
    policy, params = tiny_policy("mixed")
    expected = jitted(policy)(params, TOKENS, POSITIONS).hidden
    table = np.arange(15, dtype=np.int32).reshape(1, 3, 5)
    cache = Cache(make_pages(policy.config, 1, 15, 4), jnp.asarray(table))
    for start, end in ((0, 7), (7, 8), (8, 18)):
        output = policy.forward(params, TOKENS[:, start:end], POSITIONS[:, start:end], cache)
        assert output.cache is not None
        cache = output.cache
        np.testing.assert_allclose(output.hidden, expected[:, start:end], atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_the_other_rows_and_their_order_change_no_bit(tiny_policy: Tiny, jitted: Any, kind: str) -> None:
    policy, params = tiny_policy(kind)
    valid = np.arange(LENGTH) < LENGTHS[:, None]
    zeros, garbage = np.where(valid, TOKENS, 0), np.where(valid, TOKENS, (TOKENS * 7 + 3) % 97)
    a, b = (jitted(policy)(params, tokens, POSITIONS, counts=valid) for tokens in (zeros, garbage))
    np.testing.assert_array_equal(np.asarray(a.hidden)[valid], np.asarray(b.hidden)[valid])
    moved = np.array([2, 0, 1])
    garbage[0] = TOKENS[0][::-1]
    c = jitted(policy)(params, garbage[moved], POSITIONS, counts=valid[moved])
    for row in (1, 2):
        np.testing.assert_array_equal(
            c.hidden[np.flatnonzero(moved == row)[0], : LENGTHS[row]], a.hidden[row, : LENGTHS[row]]
        )
    if kind == "mixed":
        assert a.router is not None and b.router is not None
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a.router, b.router)
        assert a.router.load.shape == (1, 8)
        np.testing.assert_array_equal(a.router.load.sum(-1), 2 * valid.sum())
        np.testing.assert_array_equal(a.router.tokens, valid.sum())


def test_a_token_sees_no_later_one(tiny_policy: Tiny, jitted: Any) -> None:
    policy, params = tiny_policy("mixed")
    changed = TOKENS.copy()
    changed[:, 10] = (changed[:, 10] + 1) % 97
    a, b = (np.asarray(jitted(policy)(params, tokens, POSITIONS).hidden) for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(a[:, :10], b[:, :10])
    assert np.all(np.max(np.abs(a[:, 10:] - b[:, 10:]), axis=-1) > 1e-3)


@pytest.mark.parametrize("kind", ["dense", "moe"])  # untied and tied
def test_every_parameter_has_its_axes(tiny_policy: Tiny, kind: str) -> None:
    policy, params = tiny_policy(kind)
    axes = policy.logical_axes()
    names = jax.tree.map(lambda a: None, axes, is_leaf=lambda a: isinstance(a, tuple))
    assert jax.tree.structure(names, is_leaf=lambda x: x is None) == jax.tree.structure(params)

    sizes = dataclasses.asdict(policy.config)
    own_size = {
        "vocab": "vocab_size",
        "embed": "dim",
        "query_heads": "query_heads",
        "kv_heads": "kv_heads",
        "hidden": "hidden",
        "experts": "experts",
        "expert_hidden": "expert_hidden",
    }

    def check(axes: partition.Axes, param: jax.Array) -> None:
        assert len(axes) == param.ndim and param.dtype == jnp.float32
        for axis, size in zip(axes, param.shape, strict=True):
            assert axis is None or size == sizes[own_size[axis]], (axes, param.shape)
        # A matrix that no axis splits would be held whole by every device.
        assert param.ndim == 1 or any(axis is not None for axis in axes)

    jax.tree.map(check, axes, params, is_leaf=lambda a: isinstance(a, tuple))


def test_initial_spread_is_that_of_the_fan_in() -> None:
    config = PolicyConfig(vocab_size=2048, dim=64, layers=1, query_heads=8, head_size=16, moe_layers=(0,))
    params = jax.jit(Policy(dataclasses.replace(config, tied_head=False)).init)(jax.random.key(0))
    layer = params["layer_0"]
    fan_in = {
        "table": (params["embed"]["table"], 64),
        "head": (params["head"]["kernel"], 64),
        "query": (layer["attention"]["query"], 64),
        "out": (layer["attention"]["out"], 8 * 16),
        "router": (layer["moe"]["router"], 64),
        "up": (layer["moe"]["up"], 64),
        "down": (layer["moe"]["down"], config.expert_hidden),
    }
    for name, (x, size) in fan_in.items():
        np.testing.assert_allclose(np.std(x) * np.sqrt(size), 1.0, rtol=0.1, err_msg=name)
    np.testing.assert_array_equal(params["final_norm"]["scale"], np.ones(64))


def test_remat_changes_neither_value_nor_gradient_but_what_is_computed_again(tiny_policy: Tiny) -> None:
    policy, params = tiny_policy("shallow")
    length = 130  # attention by blocks
    tokens = jnp.arange(2 * length).reshape(2, length) % 97
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    products, results = {}, {}
    for remat in REMATS:
        again = Policy(dataclasses.replace(policy.config, remat=remat))

        def loss(params: Any, again: Policy = again) -> jax.Array:
            return jnp.mean(jnp.sin(again.forward(params, tokens, positions).hidden))

        products[remat] = str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")
        results[remat] = jax.jit(jax.value_and_grad(loss))(params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), results["none"], results[remat]
        )
    # A block has 7 products with weights (the last is needed by no gradient) and 2 of attention.
    again = {remat: count - products["none"] for remat, count in products.items()}
    assert again == {"none": 0, "dots": 0, "attention": 6, "block": 8}


def test_bfloat16_keeps_parameters_head_and_router_in_float32(tiny_policy: Tiny, jitted: Any) -> None:
    policy, params = tiny_policy("mixed")
    narrow = Policy(dataclasses.replace(policy.config, dtype="bfloat16"))
    output = jitted(narrow)(params, TOKENS, POSITIONS)
    assert output.hidden.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.abstract_params())} == {jnp.dtype("float32")}
    assert narrow.logits(params, output.hidden).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(output.router)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(make_pages(narrow.config, 1, 2, 4))} == {jnp.dtype("bfloat16")}
    wide = jitted(policy)(params, TOKENS, POSITIONS).hidden
    assert np.mean(np.abs(output.hidden.astype(jnp.float32) - wide)) < 0.1 * np.mean(np.abs(wide))


def test_pages_are_copied_from_a_prefill_and_within_a_pool_and_padding_nowhere(tiny_policy: Tiny) -> None:
    config = tiny_policy("dense")[0].config
    layers = jax.tree.map(lambda x: x - 1.0, make_pages(config, 2, 3, 4))
    tokens = 10.0 * jnp.arange(1.0, 3.0)[:, None, None, None] + jnp.arange(6.0)[None, None, :, None]
    prefix = tuple(Prefix(*(jnp.broadcast_to(tokens, (2, config.kv_heads, 6, config.head_size)),) * 2) for _ in layers)
    moves = [[1, 1, 0, 2], [1, 0, 1, 0], [0, 0, 0, 3]]  # row, block, shard, page
    out = admit(layers, prefix, *jnp.array(moves).T)
    for leaf in jax.tree.leaves(out):
        first, empty = leaf[:, :, 0, :, 0], [-1.0] * 4
        np.testing.assert_array_equal(first[0], [empty, empty, [24, 25, 0, 0]])
        np.testing.assert_array_equal(first[1], [[20, 21, 22, 23], empty, empty])
    copied = duplicate(out, jnp.array([0, 1]), jnp.array([2, 0]), jnp.array([1, 3]))
    for leaf in jax.tree.leaves(copied):
        np.testing.assert_array_equal(leaf[0, 1], leaf[0, 2])
        np.testing.assert_array_equal(leaf[1], jax.tree.leaves(out)[0][1])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"query_heads": 6, "kv_heads": 4}, "policy.query_heads=6 is not a multiple of policy.kv_heads=4"),
        ({"head_size": 9}, "policy.head_size=9"),
        ({"moe_layers": (4,)}, "names layer 4; there are layers 0 to 3"),
        ({"moe_layers": (1, 2, 1)}, r"policy.moe_layers=\(1, 2, 1\) names a layer twice"),
        ({"moe_layers": (0,), "experts_per_token": 9}, "policy.experts_per_token=9"),
        ({"dtype": "float16"}, "policy.dtype='float16'"),
        ({"moe_backend": "block"}, "did you mean 'blocked'"),
        ({"moe_exchange": "all"}, "policy.moe_exchange='all'"),
        ({"layers": 0}, "policy.layers=0"),
    ],
)
def test_config_names_the_field(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        Policy(PolicyConfig(**fields))
