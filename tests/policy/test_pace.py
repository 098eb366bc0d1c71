"""Gradients keep pace with the backward pass: what waits for what, and that frozen weights have none."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from rlvr.policy import lora, transformer
from rlvr.policy.lora import LoraConfig
from rlvr.policy.pace import keep_pace
from rlvr.policy.transformer import Policy


def barriers(jaxpr: Any) -> Iterator[int]:
    """Yields of each barrier in a program, and in what it calls, how many values pass it together."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "optimization_barrier":
            yield len(equation.invars)
        for inner in jaxprs_in_params(equation.params):
            yield from barriers(inner)


def products(function: Any, *arguments: Any) -> int:
    text: str = jax.jit(function).lower(*arguments).compile().as_text()
    return text.count(" dot(")


def two_layers(w: Any, x: jax.Array) -> jax.Array:
    x = jnp.sin(x @ w["a"])
    x, second = keep_pace(x, {"b": w["b"], "unused": w["unused"]})
    return jnp.sum(jnp.sin(x @ second["b"]))


def test_it_is_the_identity_and_so_is_its_gradient() -> None:
    rng = np.random.default_rng(0)
    w = {name: jnp.asarray(rng.normal(size=(8, 8)), jnp.float32) for name in ("a", "b", "unused")}
    x = jnp.asarray(rng.normal(size=(4, 8)), jnp.float32)
    a, b, x64 = (np.asarray(v, np.float64) for v in (w["a"], w["b"], x))
    first = x64 @ a
    last = np.sin(first) @ b
    np.testing.assert_allclose(two_layers(w, x), np.sum(np.sin(last)), rtol=1e-5)
    of_b = np.sin(first).T @ np.cos(last)
    of_a = x64.T @ (np.cos(last) @ b.T * np.cos(first))
    gradients = jax.jit(jax.grad(two_layers))(w, x)
    np.testing.assert_allclose(gradients["b"], of_b, atol=1e-5)
    np.testing.assert_allclose(gradients["a"], of_a, atol=1e-5)
    np.testing.assert_array_equal(gradients["unused"], np.zeros((8, 8)))


def test_the_gradient_goes_on_with_those_of_the_trained_parameters_alone() -> None:
    w, x = {name: jnp.ones((8, 8)) for name in ("a", "b", "unused")}, jnp.ones((4, 8))
    # "unused" has a gradient of zero, which nothing waits for.
    assert list(barriers(jax.make_jaxpr(jax.grad(two_layers))(w, x).jaxpr)) == [2]

    def of_a(a: jax.Array, w: Any, x: jax.Array) -> jax.Array:
        return two_layers(w | {"a": a}, x)

    assert list(barriers(jax.make_jaxpr(jax.grad(of_a))(w["a"], w, x).jaxpr)) == [1]
    # Two forward, of which the last is needed by cos; by x and by a: the gradient by b is not made.
    assert products(jax.grad(of_a), w["a"], w, x) == 4
    assert products(jax.grad(two_layers), w, x) == 5


@pytest.mark.parametrize("remat", ["none", "block"])
def test_each_layer_waits_for_the_gradients_of_the_next(remat: str, tiny_policy: Any) -> None:
    policy, params = tiny_policy("mixed")
    policy = Policy(dataclasses.replace(policy.config, remat=remat))
    adapters = lora.init_adapters(LoraConfig(rank=2, targets=("attention/query",)), policy, jax.random.key(0))
    tokens = jnp.ones((2, 4), jnp.int32)

    def loss(trained: Any, params: Any) -> jax.Array:
        return jnp.sum(policy.forward(lora.attach(params, trained), tokens, tokens).hidden)

    def values(tree: Any) -> list[int]:
        layers = [tree[f"layer_{i}"] for i in range(1, policy.config.layers)]
        # The router's choice has no gradient by the bias that it is moved with.
        return sorted(
            1 + sum(path[-1].key != "selection_bias" for path, _ in jax.tree_util.tree_leaves_with_path(layer))
            for layer in layers
        )

    assert sorted(barriers(jax.make_jaxpr(jax.grad(loss))(adapters, params).jaxpr)) == values(adapters)
    whole = jax.make_jaxpr(jax.grad(lambda params: loss({}, params)))(params)
    assert sorted(barriers(whole.jaxpr)) == values(params)


def test_adapters_cost_no_product_more(tiny_policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, params = tiny_policy("mixed")
    adapters = lora.init_adapters(LoraConfig(rank=2), policy, jax.random.key(0))
    tokens = jnp.ones((2, 4), jnp.int32)

    def count() -> int:
        def loss(adapters: Any, params: Any) -> jax.Array:
            return jnp.sum(policy.forward(lora.attach(params, adapters), tokens, tokens).hidden)

        return products(jax.grad(loss), adapters, params)

    paced = count()
    monkeypatch.setattr(transformer, "keep_pace", lambda x, params: (x, params))
    assert paced == count()
