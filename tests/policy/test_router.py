"""Routing, its statistics and its losses against numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from rlvr.algo.objectives import ObjectiveConfig
from rlvr.errors import ConfigError
from rlvr.policy.config import PolicyConfig
from rlvr.policy.router import (
    BALANCE_LOSSES,
    RouterStats,
    choose_experts,
    compute_gates,
    count_changed,
    router_stats,
    score_experts,
    z_loss,
)

E, TOP = 8, 2
RNG = np.random.default_rng(0)
CONFIG = PolicyConfig(experts=E, experts_per_token=TOP, moe_layers=(0,))
balance_loss = BALANCE_LOSSES["switch"]


def route(logits: jax.Array, bias: jax.Array | None = None, **changes: object) -> tuple[jax.Array, jax.Array]:
    config = dataclasses.replace(CONFIG, **changes)
    config.validate()
    scores = score_experts(logits, config)
    choices = choose_experts(scores, bias, config)
    return choices, compute_gates(scores, choices, config)


def stats_of(logits: jax.Array, choices: jax.Array, valid: jax.Array) -> RouterStats:
    return router_stats(logits, score_experts(logits, CONFIG), choices, valid)


def test_route_takes_the_most_probable_and_renormalises_on_request() -> None:
    logits = RNG.normal(size=(3, 4, E)).astype(np.float32)
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=-1)
    best = np.argsort(-probabilities, axis=-1)[..., :TOP]
    top = np.take_along_axis(probabilities, best, axis=-1)
    for renormalize, gates in ((False, top), (True, top / top.sum(-1, keepdims=True))):
        choices, got = route(jnp.asarray(logits), renormalize_gates=renormalize)
        np.testing.assert_array_equal(choices, best)
        np.testing.assert_allclose(got, gates, rtol=1e-5)


def stacked(stats: RouterStats) -> RouterStats:
    return jax.tree.map(lambda x: jnp.asarray(x)[None], stats)


def test_router_stats_against_numpy_without_padding() -> None:
    logits = RNG.normal(size=(3, 5, E)) * 2
    valid = np.arange(5) < np.array([5, 2, 0])[:, None]
    logits[~valid] = 50.0 * RNG.normal(size=(np.sum(~valid), E))  # padding must not show
    logits = logits.astype(np.float32)
    choices, _ = route(jnp.asarray(logits))
    stats = stats_of(jnp.asarray(logits), choices, jnp.asarray(valid))

    real = logits[valid].astype(np.float64)
    p = scipy.special.softmax(real, axis=-1)
    lse = scipy.special.logsumexp(real, axis=-1)
    load = np.bincount(np.argsort(-real, axis=-1)[:, :TOP].ravel(), minlength=E)
    assert stats.tokens == 7
    np.testing.assert_array_equal(stats.load, load)
    np.testing.assert_allclose(stats.probability, p.sum(0), rtol=1e-5)
    np.testing.assert_allclose(stats.square_lse, np.sum(lse**2), rtol=1e-5)
    np.testing.assert_allclose(stats.entropy, -np.sum(p * np.log(p)), rtol=1e-5)
    np.testing.assert_allclose(z_loss(stacked(stats)), np.mean(lse**2), rtol=1e-5)
    expected = E * np.sum(load / (TOP * 7) * p.mean(0))
    np.testing.assert_allclose(balance_loss(stacked(stats), TOP), expected, rtol=1e-5)


def test_balance_loss_is_one_at_balance_and_largest_at_collapse() -> None:
    tokens = 16.0
    even = RouterStats(tokens, np.full(E, TOP * tokens / E), np.full(E, tokens / E), 0.0, 0.0)
    np.testing.assert_allclose(balance_loss(stacked(even), TOP), 1.0)
    one = np.eye(E)[2] * tokens
    np.testing.assert_allclose(balance_loss(stacked(RouterStats(tokens, one, one, 0.0, 0.0)), 1), E)
    # Layers are averaged, each with its own balance.
    collapsed = RouterStats(tokens, one * TOP, one, 0.0, 0.0)
    both = jax.tree.map(lambda a, b: jnp.stack([jnp.asarray(a), jnp.asarray(b)]), even, collapsed)
    np.testing.assert_allclose(balance_loss(both, TOP), (1 + E) / 2)


def test_z_loss_by_hand() -> None:
    logits = jnp.log(jnp.array([[[1.0, 2.0, 4.0], [0.5, 0.25, 0.25]]]))  # logsumexp: log 7 and 0
    stats = stats_of(logits, jnp.zeros((1, 2, 1), jnp.int32), jnp.ones((1, 2), bool))
    np.testing.assert_allclose(z_loss(stacked(stats)), np.log(7.0) ** 2 / 2, rtol=1e-6)


def test_no_valid_token_is_no_division_by_zero() -> None:
    stats = stats_of(jnp.ones((1, 2, E)), jnp.zeros((1, 2, TOP), jnp.int32), jnp.zeros((1, 2), bool))
    assert balance_loss(stacked(stats), TOP) == 0.0 and z_loss(stacked(stats)) == 0.0


def deepseek(scores: np.ndarray, bias: np.ndarray, groups: int, kept: int, k: int) -> list[int]:
    """DeepSeek-V3's choice for one token, group by group."""
    ranked = scores + bias
    members = np.arange(E).reshape(groups, -1)
    worth = [sum(sorted(ranked[m])[-2:]) for m in members]
    allowed = {int(e) for g in np.argsort(worth)[-kept:] for e in members[g]}
    return sorted(allowed, key=lambda e: -ranked[e])[:k]


def test_sigmoid_routing_with_groups_and_a_selection_bias_like_deepseek_v3() -> None:
    logits = RNG.normal(size=(40, E)).astype(np.float32)
    bias = (RNG.normal(size=E) - 1.0).astype(np.float32)  # biased scores below zero: an excluded expert is not "zero"
    switches = {"router_scores": "sigmoid", "router_groups": 4, "router_groups_kept": 2, "experts_per_token": 3}
    choices, gates = route(jnp.asarray(logits), jnp.asarray(bias), gate_scale=2.5, selection_bias=True, **switches)
    scores = scipy.special.expit(logits.astype(np.float64))
    for n in range(len(logits)):
        expected = deepseek(scores[n], bias, 4, 2, 3)
        assert list(choices[n]) == expected
        picked = scores[n][expected]  # without the bias
        np.testing.assert_allclose(gates[n], 2.5 * picked / picked.sum(), rtol=1e-5)
    unbiased, _ = route(jnp.asarray(logits), None, **switches)
    assert np.any(np.asarray(unbiased) != np.asarray(choices))


def test_the_selection_bias_has_no_gradient_and_the_scores_have() -> None:
    logits = jnp.asarray(RNG.normal(size=(5, E)).astype(np.float32))

    def total(logits: jax.Array, bias: jax.Array) -> jax.Array:
        return jnp.sum(route(logits, bias, selection_bias=True)[1][:, 0])

    by_logits, by_bias = jax.grad(total, argnums=(0, 1))(logits, jnp.zeros(E))
    assert np.any(np.asarray(by_logits)) and not np.any(np.asarray(by_bias))


def test_balance_in_the_convention_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    layers = [RNG.normal(size=(3, 5, E)).astype(np.float32) * (i + 1) for i in range(2)]
    mask = np.arange(5) < np.array([5, 2, 4])[:, None]
    each = [stats_of(jnp.asarray(x), route(jnp.asarray(x))[0], jnp.asarray(mask)) for x in layers]
    ours = BALANCE_LOSSES["hf"](jax.tree.map(lambda *s: jnp.stack(s), *each), TOP)
    theirs = modeling.load_balancing_loss_func(
        tuple(torch.from_numpy(x.reshape(-1, E)) for x in layers), E, TOP, torch.from_numpy(mask.astype(np.int64))
    )
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)


def test_hf_balance_is_k_at_balance_and_every_convention_can_be_configured() -> None:
    even = RouterStats(16.0, np.full(E, TOP * 16.0 / E), np.full(E, 16.0 / E), 0.0, 0.0)
    np.testing.assert_allclose(BALANCE_LOSSES["hf"](stacked(even), TOP), TOP)
    for name in BALANCE_LOSSES:
        ObjectiveConfig(balance=name).validate()
    with pytest.raises(ConfigError, match="switch, hf"):
        ObjectiveConfig(balance="hugging").validate()


def test_changed_choices_are_counted_as_sets_over_valid_recorded_tokens() -> None:
    live = jnp.array([[[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]])  # one row, one layer
    recorded = jnp.array([[[[1, 0]], [[2, 4]], [[-1, -1]], [[0, 1]]]])  # other order; one changed; none; not valid
    valid = jnp.array([[True, True, True, False]])
    assert count_changed(live, recorded, valid) == 1
    assert count_changed(live, recorded, jnp.ones((1, 4), bool)) == 2
