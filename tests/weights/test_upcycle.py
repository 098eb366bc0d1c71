"""A dense policy and its upcycled mixture compute the same, and are told apart where they must be."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import errors
from rlvr.policy.transformer import Policy
from rlvr.weights.upcycle import upcycle_config, upcycle_params

Tiny = Callable[[str], tuple[Policy, Any]]
TOKENS = np.random.default_rng(0).integers(0, 97, size=(3, 11)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(11, dtype=np.int32), TOKENS.shape)


def logprobs(policy: Policy, params: Any) -> jax.Array:
    @jax.jit
    def run(params: Any) -> jax.Array:
        return jax.nn.log_softmax(policy.logits(params, policy.forward(params, TOKENS, POSITIONS).hidden), axis=-1)

    return run(params)


@pytest.mark.parametrize(("experts", "k", "layers"), [(8, 2, (1,)), (4, 3, (0, 1))])
def test_the_mixture_computes_what_the_dense_policy_computed(
    tiny_policy: Tiny, experts: int, k: int, layers: tuple[int, ...]
) -> None:
    policy, params = tiny_policy("dense")
    config = upcycle_config(policy.config, experts=experts, experts_per_token=k, layers=layers)
    mixture = Policy(config)
    upcycled = upcycle_params(params, config, jax.random.key(0))
    shapes = jax.tree.map(lambda x: x.shape, upcycled)
    assert shapes == jax.tree.map(lambda x: x.shape, mixture.abstract_params())
    np.testing.assert_allclose(logprobs(mixture, upcycled), logprobs(policy, params), atol=2e-5)
    # The routers are real: tokens go to different experts.
    choices = mixture.forward(upcycled, TOKENS, POSITIONS).choices
    assert choices is not None and len(np.unique(choices)) > k


def test_noise_makes_the_experts_differ_by_its_share(tiny_policy: Tiny) -> None:
    policy, params = tiny_policy("dense")
    config = upcycle_config(policy.config, experts=8, experts_per_token=2, layers=(0,))
    upcycled = upcycle_params(params, config, jax.random.key(0), noise=0.1)
    dense = params["layer_0"]["mlp"]["up"]
    differences = upcycled["layer_0"]["moe"]["up"] - dense[None]
    np.testing.assert_allclose(jnp.std(differences), 0.1 * jnp.std(dense), rtol=0.05)
    gap = jnp.abs(logprobs(Policy(config), upcycled) - logprobs(policy, params))
    assert 1e-3 < float(jnp.mean(gap)) < 0.5


def test_what_cannot_be_upcycled_is_refused(tiny_policy: Tiny) -> None:
    dense = tiny_policy("dense")[0].config
    for config, layers, k, message in (
        (dense, (2,), 2, "layer 2; there are layers 0 to 1"),
        (dense, (), 2, "at least one layer"),
        (dense, (0,), 9, "experts_per_token=9"),
        (dataclasses.replace(dense, moe_layers=(1,)), (0,), 2, "without mixture layers"),
    ):
        with pytest.raises(errors.ConfigError, match=message):
            upcycle_config(config, experts=8, experts_per_token=k, layers=layers)
