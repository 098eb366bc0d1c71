"""The three forms of the experts against a loop over tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from rlvr.policy import backends, blocks, ragged, sorting
from rlvr.policy.backends import BACKENDS, BUSY
from rlvr.policy.blocks import block_size
from rlvr.policy.config import PolicyConfig
from rlvr.policy.experts import Experts, Projection
from rlvr.policy.sorting import permute

N, D, F, E, TOP = 70, 12, 20, 8, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
GATES = RNG.uniform(0.1, 1.0, size=(N, TOP)).astype(np.float32)
WEIGHTS = Experts(
    *(Projection(jnp.asarray(RNG.normal(size=s).astype(np.float32) * 0.3)) for s in ((E, D, F), (E, D, F), (E, F, D)))
)
CONFIG = PolicyConfig(dim=D, experts=E, experts_per_token=TOP, expert_hidden=F)
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
NOWHERE = np.tile(np.int32([0, 7]), (N, 1))  # no token goes to the experts of "some" below
# Which experts are here, as on a shard of the expert axis: the assignments of the others must count for nothing.
SHARDS = {"all": (0, E), "some": (3, 3), "last": (7, 1)}


def loop(choices: np.ndarray, first: int, count: int) -> np.ndarray:
    gate, up, down = (np.asarray(p.weight, np.float64) for p in WEIGHTS)
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
    assert N > 4 * block_size(N * TOP, E, "cpu")  # several blocks of one expert


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("shard", SHARDS)
def test_backends_agree_with_a_loop_in_value_and_with_each_other_in_gradient(routing: str, shard: str) -> None:
    choices, (first, count) = ROUTINGS[routing], SHARDS[shard]
    weights = jax.tree.map(lambda w: w[first : first + count], WEIGHTS)
    gradients = {}
    for name, experts in BACKENDS.items():

        def run(x: jax.Array, gates: jax.Array, weights: Experts, experts=experts) -> tuple[jax.Array, jax.Array]:
            out = experts(x, jnp.asarray(choices), gates, weights, jnp.int32(first), CONFIG)
            return jnp.sum(out * COTANGENT), out

        (_, out), gradients[name] = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))(
            jnp.asarray(X), jnp.asarray(GATES), weights
        )
        np.testing.assert_allclose(out, loop(choices, first, count), atol=2e-5, err_msg=name)
    for name in ("blocked", "ragged"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), gradients[name], gradients["dense"])
    unused = np.setdiff1d(np.arange(first, first + count), choices) - first
    for name, (_, _, by_weight) in gradients.items():
        for w in jax.tree.leaves(by_weight):
            assert np.all(np.asarray(w)[unused] == 0.0), name


def make_pull(choices: np.ndarray, first: int) -> Any:
    """Returns what gives the blocked form's value and gradients on the shard of experts from `first`."""

    def run(x: jax.Array, gates: jax.Array, weights: Experts) -> tuple[jax.Array, jax.Array]:
        out = BACKENDS["blocked"](x, jnp.asarray(choices), gates, weights, jnp.int32(first), CONFIG)
        return jnp.sum(out * COTANGENT), out

    return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))


def some_experts() -> tuple[int, Experts]:
    """Experts with everything: biases, adapters."""
    (first, count), draw = SHARDS["some"], np.random.default_rng(6).normal
    made = [
        (p.weight[first : first + count], *(jnp.asarray(draw(size=(count, *s)), jnp.float32) for s in shapes))
        for p, i, o in zip(WEIGHTS, (D, D, F), (F, F, D), strict=True)
        for shapes in [((o,), (i, 2), (2, o))]
    ]
    return first, Experts(*(Projection(*p) for p in made))


@pytest.mark.parametrize("choices", [*ROUTINGS.values(), NOWHERE])
def test_rounds_and_what_an_allocation_holds_do_not_show(choices: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    first, weights = some_experts()
    filled = int(np.isin(choices, np.arange(first, first + 3)).sum())
    monkeypatch.setattr(sorting, "_allocate", lambda shape, dtype: jnp.full(shape, jnp.nan, dtype))
    monkeypatch.setattr(sorting, "PIECE", 16)
    results = []
    for spare in (8.0, 0.3):
        monkeypatch.setattr(blocks, "SPARE", spare)
        (_, out), gradients = make_pull(choices, first)(jnp.asarray(X), jnp.asarray(GATES), weights)
        results.append((out, gradients[0], gradients[1:]))
    assert filled == 0 or filled > 2 * blocks.round_up(int(0.3 * N * TOP * 3 / E), block_size(N * TOP, E, "cpu"))
    one, many = results
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(results))
    jax.tree.map(np.testing.assert_array_equal, many[:2], one[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), many[2], one[2])


def test_gradients_of_blocks_are_differences_of_their_values() -> None:
    with jax.enable_x64(True):
        first, weights = some_experts()
        at = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64) * 0.5, (X, GATES, weights))
        rng = np.random.default_rng(7)
        step = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), at)
        run = make_pull(ROUTINGS["random"], first)
        _, gradients = run(*at)

        def value(i: int, size: float) -> float:
            moved = list(at)
            moved[i] = jax.tree.map(lambda a, s: a + size * s, at[i], step[i])
            return float(run(*moved)[0][0])

        for i in range(3):  # by the tokens, the gates and the experts, each alone
            slope = sum(jax.tree.leaves(jax.tree.map(lambda g, s: float(jnp.sum(g * s)), gradients[i], step[i])))
            assert (value(i, 1e-5) - value(i, -1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_ranks_list_the_rows_of_a_token_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "PIECE", 2)
    # Three tokens, two choices: of groups 1 and 0, of none and 1, of none at all.
    order = sorting.sort_by(jnp.array([1, 0, -1, 1, 7, -1]), 2)
    ranks = sorting.rank_rows(order, 2, jnp.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]))
    none = sorting.NOWHERE
    np.testing.assert_array_equal(ranks.places.reshape(2, 4), [[0, 2, none, none], [1, none, none, none]])
    np.testing.assert_allclose(ranks.gates.reshape(2, 4), [[0.2, 0.4, 0, 0], [0.1, 0, 0, 0]])
    np.testing.assert_array_equal(ranks.depths, [2, 0])
    rows = jnp.array([[1.0], [10.0], [100.0]])
    np.testing.assert_allclose(sorting.add_rows(jnp.full((4, 1), jnp.nan), rows, ranks)[:3, 0], [1.2, 40, 0])


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("name", BACKENDS)
def test_fewer_assignments_than_experts(name: str, tokens: int) -> None:
    x, choices, gates = (jnp.asarray(a[:tokens]) for a in (X, ROUTINGS["random"], GATES))
    out = BACKENDS[name](x, choices, gates, WEIGHTS, jnp.int32(0), CONFIG)
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
    arrays = (jnp.asarray(a) for a in (X, choices, GATES))
    x, choice, gates = arrays

    def run(x: jax.Array, gates: jax.Array, weights: Experts) -> tuple[jax.Array, jax.Array]:
        out = BACKENDS["ragged"](x, choice, gates, weights, jnp.int32(first), CONFIG)
        return jnp.sum(out * COTANGENT), out

    biased = weights._replace(
        gate=weights.gate._replace(bias=jnp.zeros((count, F))), down=weights.down._replace(bias=jnp.zeros((count, D)))
    )
    gradients, out = jax.grad(run, argnums=(0, 1, 2), has_aux=True)(x, gates, biased)
    np.testing.assert_allclose(out, loop(choices, first, count), atol=2e-5)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("block", [16, 512])
@pytest.mark.parametrize("sizes", [[300, 0, 10, 241, 0, 69], [0, 0, 0, 0, 0, 620], [99, 7, 64, 32, 33, 1], [0] * 6])
def test_the_gradient_of_the_ragged_product_is_a_loop_over_groups(
    sizes: list[int], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ragged, "BLOCK", block)
    rng = np.random.default_rng(1)
    rows, weights, slope = (rng.normal(size=s).astype(np.float32) for s in ((620, 12), (6, 12, 20), (620, 20)))
    ends = np.cumsum(sizes)
    rows[ends[-1] :] = np.inf  # these belong to no group
    run = lambda r, w: ragged.ragged_product(r, w, jnp.array(sizes))  # noqa: E731
    _, pull = jax.vjp(run, jnp.asarray(rows), jnp.asarray(weights))
    by_rows, by_weights = pull(jnp.asarray(slope))
    for g, end in enumerate(ends):
        own = slice(end - sizes[g], end)
        np.testing.assert_allclose(by_rows[own], slope[own].astype(np.float64) @ weights[g].T, atol=1e-5)
        np.testing.assert_allclose(by_weights[g], rows[own].astype(np.float64).T @ slope[own], atol=2e-4)


def test_on_a_tpu_experts_with_few_rows_have_products_without_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.partition, "platform", lambda: "tpu")
    for tokens, form in ((BUSY * E // TOP, "while"), (BUSY * E // TOP - 1, "ragged_dot")):
        x, gates = jnp.zeros((tokens, D)), jnp.zeros((tokens, TOP))
        run = lambda *a: backends.backend("auto")(*a, WEIGHTS, jnp.int32(0), CONFIG)  # noqa: E731
        text = str(jax.make_jaxpr(run)(x, gates.astype(jnp.int32), gates))
        assert form in text and (form == "ragged_dot") == ("ragged_dot" in text)


def test_the_gradient_of_a_permutation_is_its_inverse() -> None:
    order = np.random.default_rng(2).permutation(9)
    inverse = np.argsort(order)
    x, cotangent = (jnp.asarray(np.random.default_rng(i).normal(size=(9, 3)), jnp.float32) for i in (3, 4))
    out, pull = jax.vjp(lambda x: permute(x, jnp.asarray(order), jnp.asarray(inverse)), x)
    np.testing.assert_array_equal(out, x[order])
    np.testing.assert_array_equal(pull(cotangent)[0], cotangent[inverse])


@pytest.mark.parametrize("name", ["blocked", "dense"])
def test_a_token_has_the_same_bits_wherever_its_neighbours_go(name: str) -> None:
    # 600 tokens of an expert or 40: products of other shapes round otherwise, so their shape must not depend on this.
    rng = np.random.default_rng(5)
    tokens, dim, hidden = 600, 96, 64
    config = PolicyConfig(dim=dim, experts=E, experts_per_token=TOP, expert_hidden=hidden)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32) * 0.1)  # noqa: E731
    weights = Experts(*(Projection(draw(E, *s)) for s in ((dim, hidden), (dim, hidden), (hidden, dim))))
    x, gates = draw(tokens, dim), jnp.full((tokens, TOP), 0.5)
    run = jax.jit(lambda choices: BACKENDS[name](x, choices, gates, weights, jnp.int32(0), config))
    own = np.array([[2, 5], [7, 0], [5, 2]], np.int32)
    spread, crowded = np.argsort(rng.random((tokens, E)), axis=1)[:, :TOP], np.tile([5, 2], (tokens, 1))
    outs = []
    for others in (spread, crowded):
        choices = others.astype(np.int32)
        choices[[0, 299, 599]] = own
        outs.append(np.asarray(run(jnp.asarray(choices)))[[0, 299, 599]])
    np.testing.assert_array_equal(*outs)
