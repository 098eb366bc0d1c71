"""Nothing under a mask leaks, in value or in gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from rlvr.masked import masked, masked_max, masked_sum, segment_mean, segment_sum

MASK = np.array([[True, False, True], [False, False, True]])
X = np.array([[1.0, np.nan, 2.0], [np.inf, -np.inf, 4.0]], np.float32)


def test_garbage_under_the_mask_is_zero() -> None:
    np.testing.assert_array_equal(masked(X, MASK), [[1, 0, 2], [0, 0, 4]])
    assert masked_sum(X, MASK) == 7.0
    assert masked_max(X, MASK) == 4.0
    assert masked_max(X, np.zeros_like(MASK)) == 0.0


def test_gradient_of_garbage_is_zero() -> None:
    # The gradient of exp at 1000 is infinite; only masking before it keeps 0 * inf out of the sum.
    x = jnp.array([0.0, 1000.0, 1.0])
    mask = jnp.array([True, False, True])
    gradient = jax.grad(lambda x: masked_sum(jnp.exp(masked(x, mask)), mask))(x)
    np.testing.assert_allclose(gradient, [1.0, 0.0, np.e], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: masked_sum(x, MASK))(jnp.asarray(X)), MASK.astype(np.float32))


def test_segments_of_a_row() -> None:
    x = np.array([[1.0, 2.0, 4.0, np.nan], [8.0, np.inf, 16.0, 32.0]], np.float32)
    mask = np.array([[True, True, True, False], [True, False, True, True]])
    segments = np.array([[0, 1, 0, 99], [0, -7, 0, 1]])  # each row counts for itself
    np.testing.assert_array_equal(segment_sum(x, mask, segments), [[5, 2, 5, 0], [24, 0, 24, 32]])
    np.testing.assert_array_equal(segment_mean(x, mask, segments), [[2.5, 2, 2.5, 0], [12, 0, 12, 32]])
    slope = jax.grad(lambda x: segment_mean(x, mask, segments)[0, 0])(jnp.asarray(x))
    np.testing.assert_array_equal(slope, [[0.5, 0, 0.5, 0], [0, 0, 0, 0]])
