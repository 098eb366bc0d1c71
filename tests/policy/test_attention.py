"""RoPE and grouped-query attention against independent numpy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.policy.cache import Pages
from rlvr.policy.config import RopeConfig
from rlvr.policy.paged import attend_pages
from rlvr.policy.rope import apply_rope, rope_angles

H, K, HEAD = 6, 2, 10


def rope_complex(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """RoPE as the authors write it: pair j is a complex number, turned by position * theta**(-2j/h)."""
    half = x.shape[-1] // 2
    pairs = x[..., :half].astype(np.float64) + 1j * x[..., half:]
    turns = positions[:, :, None, None] * theta ** (-2.0 * np.arange(half) / x.shape[-1])
    turned = pairs * np.exp(1j * turns)
    return np.concatenate([turned.real, turned.imag], axis=-1)


@pytest.mark.parametrize("theta", [100.0, 10_000.0])
def test_rope_is_a_complex_rotation(theta: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, H, HEAD)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3], [7, 8, 9, 10], [100, 101, 102, 103]])
    got = apply_rope(jnp.asarray(x), *rope_angles(jnp.asarray(positions), HEAD, RopeConfig(theta=theta)))
    np.testing.assert_allclose(got, rope_complex(x, positions, theta), atol=2e-5)
    np.testing.assert_array_equal(got[0, 0], x[0, 0])  # position 0 turns nothing


def test_scores_depend_on_the_distance_only() -> None:
    rng = np.random.default_rng(1)
    query, key = (rng.normal(size=(1, 1, 1, HEAD)).astype(np.float32) for _ in range(2))

    def score(m: int, n: int) -> float:
        q = apply_rope(jnp.asarray(query), *rope_angles(jnp.array([[m]]), HEAD, RopeConfig()))
        k = apply_rope(jnp.asarray(key), *rope_angles(jnp.array([[n]]), HEAD, RopeConfig()))
        return float(jnp.sum(q * k))

    np.testing.assert_allclose(score(9, 4), score(25, 20), atol=1e-4)
    assert abs(score(9, 4) - score(4, 9)) > 1e-2


def attend_numpy(query: np.ndarray, keys: np.ndarray, values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Multi-head attention with each kv head repeated, one query at a time over what it sees."""
    query, keys, values = (x.astype(np.float64) for x in (query, keys, values))
    keys, values = (np.repeat(x, query.shape[2] // keys.shape[1], axis=1) for x in (keys, values))
    out = np.zeros(query.shape)
    for b, t, head in np.ndindex(*query.shape[:3]):
        seen = slice(0, positions[b, t] + 1)
        scores = keys[b, head, seen] @ query[b, t, head] / np.sqrt(query.shape[-1])
        p = np.exp(scores - scores.max())
        out[b, t, head] = p / p.sum() @ values[b, head, seen]
    return out


@pytest.mark.parametrize("start", [[0, 0], [0, 5], [3, 6]])
def test_attention_over_pages_is_that_with_repeated_kv_heads(start: list[int]) -> None:
    rng = np.random.default_rng(2)
    batch, length, entries = 2, 3, 9
    query = rng.normal(size=(batch, length, H, HEAD)).astype(np.float32)
    keys, values = (rng.normal(size=(batch, K, entries, HEAD)).astype(np.float32) for _ in range(2))
    positions = np.asarray(start)[:, None] + np.arange(length)
    for b in range(batch):  # what lies beyond the last position is leftovers of another sequence
        keys[b, :, positions[b, -1] + 1 :] = 1e4
        values[b, :, positions[b, -1] + 1 :] = -1e4
    table = rng.permutation(batch * 3).reshape(1, batch, 3)  # pages of 3 tokens, anywhere in the pool

    def paged(x: np.ndarray) -> jnp.ndarray:
        pool = np.zeros((1, batch * 3, K, 3, HEAD), np.float32)
        pool[0, table[0]] = x.reshape(batch, K, 3, 3, HEAD).swapaxes(1, 2)
        return jnp.asarray(pool)

    pages = Pages(paged(keys), paged(values))
    got = attend_pages(jnp.asarray(query), pages, jnp.asarray(table), jnp.asarray(positions), scale=HEAD**-0.5)
    np.testing.assert_allclose(got, attend_numpy(query, keys, values, positions), atol=2e-6)
