"""Drawing: the inverse CDF against numpy in float64, the frequencies, and the log-probs of what was drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from rlvr import keys
from rlvr.rollout.sampling import invert_cdf, sample
from tests.rollout.filters import at_temperature

ROWS = 64


def adversarial(vocab: int, rng: np.random.Generator) -> np.ndarray:
    """Weights [ROWS, V], small integers so that every partial sum is exact in float32."""
    weights = rng.integers(0, 8, size=(ROWS, vocab)).astype(np.float32)
    weights[0] = 0  # one token carries all, at either end or inside
    weights[0, 0] = 1
    weights[1] = 0
    weights[1, -1] = 1
    weights[2] = 0
    weights[2, vocab // 2] = 3
    weights[3, : vocab // 2] = 0  # zeros at the start, at the end, and over whole blocks of 128
    weights[4, vocab // 2 :] = 0
    weights[5] = 0
    weights[5, [0, -1]] = 1
    weights[6, 100:260] = 0
    weights[7] = 1
    weights[8, vocab // 3] = 2.0**20  # a dominant one among crumbs
    weights[np.sum(weights, axis=1) == 0, vocab // 2] = 1
    return weights


@pytest.mark.parametrize("vocab", [1, 5, 128, 129, 300, 1000])
def test_inverse_cdf_is_searchsorted_in_float64(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    weights = adversarial(vocab, rng)
    ends = np.cumsum(weights.astype(np.float64), axis=1)
    # Dyadic uniforms, 0 and the largest below 1 among them: uniform * total is nearly always exact as well.
    for uniform in (np.zeros(ROWS), np.full(ROWS, 1 - 2.0**-24), rng.integers(0, 256, ROWS) / 256):
        got = np.asarray(invert_cdf(jnp.asarray(weights), jnp.asarray(uniform, jnp.float32)))
        target = uniform.astype(np.float32) * ends[:, -1].astype(np.float32)
        for row in range(ROWS):
            want = np.searchsorted(ends[row], np.float64(target[row]), side="right")
            want = min(want, np.flatnonzero(weights[row])[-1])  # the product may round up to the total
            assert got[row] == want, (row, uniform[row])


@pytest.mark.parametrize("vocab", [97, 1000, 5003])
def test_real_weights_land_within_rounding_and_never_on_zero(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    weights = np.exp(rng.normal(size=(ROWS, vocab)) * 4).astype(np.float32)
    weights[:, rng.random(vocab) < 0.3] = 0
    weights[:, :3] = 0
    weights[:, -3:] = 0
    weights[0, 4] = 1e6
    cumulative = np.cumsum(weights.astype(np.float64), axis=1)
    share = np.concatenate([np.zeros((ROWS, 1)), cumulative / cumulative[:, -1:]], axis=1)
    for uniform in (np.zeros(ROWS), np.full(ROWS, 1 - 2.0**-24), rng.random(ROWS)):
        got = np.asarray(invert_cdf(jnp.asarray(weights), jnp.asarray(uniform, jnp.float32)))
        rows = np.arange(ROWS)
        assert np.all(weights[rows, got] > 0)
        # 2e-6: a float32 sum of a few thousand terms, in blocks.
        assert np.all(share[rows, got] - 2e-6 <= uniform) and np.all(uniform <= share[rows, got + 1] + 2e-6)


def row_keys(rows: int) -> jax.Array:
    return keys.fold_in_rows(jax.random.key(0), jnp.arange(rows, dtype=jnp.uint32))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_frequencies_are_the_probabilities(temperature: float) -> None:
    draws = 20_000
    logits = np.array([0.5, -1.0, 2.0, -np.inf, 0.0, 1.0, -2.5, -np.inf], np.float32)
    p = scipy.special.softmax(logits.astype(np.float64) / temperature)
    tokens, _, _ = sample(
        jnp.broadcast_to(jnp.asarray(logits), (draws, 8)),
        row_keys(draws),
        jnp.full(draws, 3),
        at_temperature(temperature),
    )
    counts = np.bincount(np.asarray(tokens), minlength=8)
    assert np.all(counts[p == 0] == 0)
    assert scipy.stats.chisquare(counts[p > 0], draws * p[p > 0]).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.6])
def test_logprobs_are_those_of_the_distribution_drawn_from(temperature: float) -> None:
    logits = (np.random.default_rng(0).normal(size=(ROWS, 300)) * 5 + 40).astype(np.float32)
    logits[:, ::3] = -np.inf
    tokens, logprobs, _ = sample(
        jnp.asarray(logits), row_keys(ROWS), jnp.zeros(ROWS, jnp.int32), at_temperature(temperature)
    )
    expected = scipy.special.log_softmax(logits.astype(np.float64) / temperature, axis=-1)
    np.testing.assert_allclose(logprobs, expected[np.arange(ROWS), tokens], atol=2e-5)
    assert np.all(np.asarray(tokens) % 3 != 0)
    assert len(set(np.asarray(tokens).tolist())) > 10


def test_greedy_takes_the_first_best_and_reports_its_logprob_at_temperature_one() -> None:
    logits = np.random.default_rng(1).normal(size=(ROWS, 97)).astype(np.float32)
    logits[0, [5, 60]] = 9.0
    tokens, logprobs, _ = sample(jnp.asarray(logits), row_keys(ROWS), jnp.zeros(ROWS, jnp.int32), at_temperature(0.0))
    np.testing.assert_array_equal(tokens, np.argmax(logits, axis=-1))
    assert tokens[0] == 5
    expected = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    np.testing.assert_allclose(logprobs, expected[np.arange(ROWS), tokens], atol=2e-6)


def test_a_draw_belongs_to_its_key_and_position_not_to_its_row() -> None:
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(ROWS, 97)), jnp.float32)
    order = np.random.default_rng(3).permutation(ROWS)
    position = jnp.arange(ROWS, dtype=jnp.int32) % 5
    tokens, logprobs, _ = sample(logits, row_keys(ROWS), position, at_temperature(1.0))
    moved = sample(logits[order], row_keys(ROWS)[order], position[order], at_temperature(1.0))
    np.testing.assert_array_equal(moved[0], tokens[order])
    np.testing.assert_array_equal(moved[1], logprobs[order])
    later, _, _ = sample(logits, row_keys(ROWS), position + 1, at_temperature(1.0))
    assert np.mean(np.asarray(later) == np.asarray(tokens)) < 0.5


def reference_support(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Which tokens of one row pass, by sorting in float64."""
    p = scipy.special.softmax(logits.astype(np.float64) / temperature)
    kept = p >= np.sort(p)[::-1][min(top_k, p.size) - 1]
    left = np.where(kept, p, 0.0) / p[kept].sum()
    order = np.argsort(-left, kind="stable")
    needed = np.searchsorted(np.cumsum(left[order]), top_p - 1e-9) + 1
    kept &= left >= left[order[min(needed, p.size) - 1]]
    return kept & (p >= min_p * p.max())


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (1, 1.0, 0.0),
        (7, 1.0, 0.0),
        (1000, 0.5, 0.0),
        (1000, 0.95, 0.0),
        (1000, 1.0, 0.1),
        (20, 0.8, 0.05),
        (5, 1e-6, 0.0),
    ],
)
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_filters_are_those_of_a_sort_in_float64(top_k: int, top_p: float, min_p: float, temperature: float) -> None:
    logits = (np.random.default_rng(4).normal(size=(ROWS, 300)) * 3).astype(np.float32)
    logits[3, :] = 1.0  # all tied: all the same to every filter
    logits[4, 7:] = -np.inf
    sampling = at_temperature(temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    drawn = sample(jnp.asarray(logits), row_keys(ROWS), jnp.zeros(ROWS, jnp.int32), sampling, filtered=True)
    assert drawn.support is not None
    support = np.unpackbits(np.asarray(drawn.support), axis=-1)[:, :300].astype(bool)
    for row in range(ROWS):
        want = reference_support(logits[row], temperature, top_k, top_p, min_p) & (logits[row] > -np.inf)
        np.testing.assert_array_equal(support[row], want)
        alone = np.where(want, logits[row].astype(np.float64) / temperature, -np.inf)
        token = int(drawn.tokens[row])
        np.testing.assert_allclose(drawn.logprobs[row], scipy.special.log_softmax(alone)[token], atol=2e-5)
        assert want[token]


def test_greedy_is_not_filtered_and_a_bias_is_part_of_the_logits() -> None:
    logits = jnp.asarray(np.random.default_rng(5).normal(size=(ROWS, 97)), jnp.float32)
    keyed = row_keys(ROWS), jnp.zeros(ROWS, jnp.int32)
    plain = sample(logits, *keyed, at_temperature(0.0))
    filtered = sample(logits, *keyed, at_temperature(0.0, top_k=2), filtered=True)
    np.testing.assert_array_equal(plain.tokens, filtered.tokens)
    np.testing.assert_array_equal(plain.logprobs, filtered.logprobs)
    bias = jnp.zeros(97).at[5].set(40.0)
    biased = sample(logits, *keyed, at_temperature(1.0)._replace(bias=bias))
    assert np.all(np.asarray(biased.tokens) == 5) and np.all(np.asarray(biased.logprobs) > -1e-6)
