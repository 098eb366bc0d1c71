"""Routing, its statistics, and the three forms of dispatch against a loop over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from rlvr.policy.moe import (
    BACKENDS,
    ExpertWeights,
    RouterStats,
    balance_loss,
    block_size,
    route,
    router_stats,
    z_loss,
)

N, D, F, E, TOP = 70, 12, 20, 8, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
GATES = RNG.uniform(0.1, 1.0, size=(N, TOP)).astype(np.float32)
WEIGHTS = ExpertWeights(
    *(jnp.asarray(RNG.normal(size=s).astype(np.float32) * 0.3) for s in ((E, D, F), (E, D, F), (E, F, D)))
)
COTANGENT = RNG.normal(size=(N, D)).astype(np.float32)


def distinct_choices(seed: int) -> np.ndarray:
    return np.argsort(np.random.default_rng(seed).random((N, E)), axis=1)[:, :TOP].astype(np.int32)


def all_to_one() -> np.ndarray:
    """Every token chooses expert 5, first or second, and no token chooses 0, 3 or 7."""
    other = np.array([1, 2, 4, 6])[np.random.default_rng(3).integers(0, 4, N)]
    pairs = np.stack([np.full(N, 5), other], axis=1)
    pairs[::2] = pairs[::2, ::-1]
    return pairs.astype(np.int32)


ROUTINGS = {"random": distinct_choices(1), "all_to_one": all_to_one()}
# Which experts are here, as on a shard of the expert axis: the assignments of the others must count for nothing.
SHARDS = {"all": (0, E), "some": (3, 3), "last": (7, 1)}


def loop(choices: np.ndarray, first: int, count: int) -> np.ndarray:
    gate, up, down = (np.asarray(w, np.float64) for w in WEIGHTS)
    out = np.zeros((N, D))
    for n, j in np.ndindex(N, TOP):
        e = choices[n, j]
        if first <= e < first + count:
            g = X[n].astype(np.float64) @ gate[e]
            out[n] += GATES[n, j] * ((g * scipy.special.expit(g) * (X[n] @ up[e])) @ down[e])
    return out


def test_the_crafted_routing_is_what_it_says() -> None:
    counts = np.bincount(ROUTINGS["all_to_one"].ravel(), minlength=E)
    assert counts[5] == N and counts[0] == counts[3] == counts[7] == 0 and counts.sum() == N * TOP
    assert N > 4 * block_size(N * TOP, E)  # several blocks of one expert


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("shard", SHARDS)
def test_backends_agree_with_a_loop_in_value_and_with_each_other_in_gradient(routing: str, shard: str) -> None:
    choices, (first, count) = ROUTINGS[routing], SHARDS[shard]
    weights = jax.tree.map(lambda w: w[first : first + count], WEIGHTS)
    gradients = {}
    for name, experts in BACKENDS.items():

        def run(x: jax.Array, gates: jax.Array, weights: ExpertWeights, experts=experts) -> tuple[jax.Array, jax.Array]:
            out = experts(x, jnp.asarray(choices), gates, weights, jnp.int32(first))
            return jnp.sum(out * COTANGENT), out

        (_, out), gradients[name] = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))(
            jnp.asarray(X), jnp.asarray(GATES), weights
        )
        np.testing.assert_allclose(out, loop(choices, first, count), atol=2e-5, err_msg=name)
    for name in ("blocked", "ragged"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), gradients[name], gradients["dense"])
    unused = np.setdiff1d(np.arange(first, first + count), choices) - first
    for name, (_, _, by_weight) in gradients.items():
        for w in by_weight:
            assert np.all(np.asarray(w)[unused] == 0.0), name


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("name", BACKENDS)
def test_fewer_assignments_than_experts(name: str, tokens: int) -> None:
    x, choices, gates = (jnp.asarray(a[:tokens]) for a in (X, ROUTINGS["random"], GATES))
    out = BACKENDS[name](x, choices, gates, WEIGHTS, jnp.int32(0))
    np.testing.assert_allclose(out, loop(ROUTINGS["random"], 0, E)[:tokens], atol=2e-5)


def test_ragged_uses_no_row_past_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    # Zero by the reference semantics, but left as it was by some accelerator kernels.
    original = jax.lax.ragged_dot

    def leaves_garbage(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
        past = jnp.arange(rows.shape[0])[:, None] >= jnp.sum(sizes)
        return jnp.where(past, jnp.nan, original(rows, weights, sizes))

    monkeypatch.setattr(jax.lax, "ragged_dot", leaves_garbage)
    (first, count), choices = SHARDS["some"], ROUTINGS["random"]
    weights = jax.tree.map(lambda w: w[first : first + count], WEIGHTS)
    out = BACKENDS["ragged"](jnp.asarray(X), jnp.asarray(choices), jnp.asarray(GATES), weights, jnp.int32(first))
    np.testing.assert_allclose(out, loop(choices, first, count), atol=2e-5)


def test_route_takes_the_most_probable_and_renormalises_on_request() -> None:
    logits = RNG.normal(size=(3, 4, E)).astype(np.float32)
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=-1)
    best = np.argsort(-probabilities, axis=-1)[..., :TOP]
    top = np.take_along_axis(probabilities, best, axis=-1)
    for renormalize, gates in ((False, top), (True, top / top.sum(-1, keepdims=True))):
        choices, got = route(jnp.asarray(logits), TOP, renormalize)
        np.testing.assert_array_equal(choices, best)
        np.testing.assert_allclose(got, gates, rtol=1e-5)


def stacked(stats: RouterStats) -> RouterStats:
    return jax.tree.map(lambda x: jnp.asarray(x)[None], stats)


def test_router_stats_against_numpy_without_padding() -> None:
    logits = RNG.normal(size=(3, 5, E)) * 2
    valid = np.arange(5) < np.array([5, 2, 0])[:, None]
    logits[~valid] = 50.0 * RNG.normal(size=(np.sum(~valid), E))  # padding must not show
    logits = logits.astype(np.float32)
    choices, _ = route(jnp.asarray(logits), TOP, True)
    stats = router_stats(jnp.asarray(logits), choices, jnp.asarray(valid))

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
    stats = router_stats(logits, jnp.zeros((1, 2, 1), jnp.int32), jnp.ones((1, 2), bool))
    np.testing.assert_allclose(z_loss(stacked(stats)), np.log(7.0) ** 2 / 2, rtol=1e-6)


def test_no_valid_token_is_no_division_by_zero() -> None:
    stats = router_stats(jnp.ones((1, 2, E)), jnp.zeros((1, 2, TOP), jnp.int32), jnp.zeros((1, 2), bool))
    assert balance_loss(stacked(stats), TOP) == 0.0 and z_loss(stacked(stats)) == 0.0
