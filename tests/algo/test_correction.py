"""Weights of off-policy samples by hand: two sequences in a row, and padding of garbage."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.algo.correction import CorrectionConfig, correct, keep_on_policy

W = np.array([[0.25, 4.0, 2.0, 1.0, 1.5, 7.0]])
MASK = np.array([[True, True, True, True, True, False]])
SEQUENCES = np.array([[0, 0, 0, 1, 1, 5]])
LOG_W = np.where(MASK, np.log(W), np.nan).astype(np.float32)
MEANS = (2.0 ** (1 / 3), 1.5**0.5)  # 1.26 and 1.22; the products are 2 and 1.5


@pytest.mark.parametrize(
    ("config", "weights", "changed"),
    [
        (CorrectionConfig("untruncated"), [0.25, 4, 2, 1, 1.5], [0, 0, 0, 0, 0]),
        (CorrectionConfig("tis", high=2.5), [0.25, 2.5, 2, 1, 1.5], [0, 1, 0, 0, 0]),
        (CorrectionConfig("mis", high=2.5), [0.25, 0, 2, 1, 1.5], [0, 1, 0, 0, 0]),
        (CorrectionConfig("icepop", low=0.5, high=2.5), [0, 0, 2, 1, 1.5], [1, 1, 0, 0, 0]),
        (CorrectionConfig("tis", level="seq_prod", high=1.75), [1.75] * 3 + [1.5] * 2, [1, 1, 1, 0, 0]),
        (CorrectionConfig("mis", level="seq_prod", high=1.75), [0] * 3 + [1.5] * 2, [1, 1, 1, 0, 0]),
        (CorrectionConfig("tis", level="seq_geo", high=1.24), [1.24] * 3 + [MEANS[1]] * 2, [1, 1, 1, 0, 0]),
        (CorrectionConfig(reject="seq_prod", reject_high=1.75), [0] * 3 + [1] * 2, [1, 1, 1, 0, 0]),
        (CorrectionConfig(reject="seq_geo", reject_high=1.24), [0] * 3 + [1] * 2, [1, 1, 1, 0, 0]),
        (
            CorrectionConfig("untruncated", reject="outlier", reject_low=0.5, reject_high=9.0),
            [0, 0, 0, 1, 1.5],
            [1, 1, 1, 0, 0],
        ),
    ],
)
def test_by_hand(config: CorrectionConfig, weights: list[float], changed: list[int]) -> None:
    got, where = correct(jnp.asarray(LOG_W), jnp.asarray(MASK), jnp.asarray(SEQUENCES), config)
    np.testing.assert_allclose(got[0, :5], weights, rtol=1e-6)
    np.testing.assert_array_equal(where[0, :5], changed)
    assert got[0, 5] == 1.0 and not where[0, 5]  # whatever stands in the padding


def test_weights_stay_finite() -> None:
    log_w = jnp.array([[500.0, -500.0, jnp.nan]])
    mask = jnp.array([[True, True, False]])
    for level in ("token", "seq_geo", "seq_prod"):
        got, _ = correct(log_w, mask, jnp.zeros((1, 3), int), CorrectionConfig("untruncated", level=level))
        assert np.all(np.isfinite(got))


def test_opsm_drops_what_the_policy_has_left_behind() -> None:
    """Only where A < 0, only by the mean of the sequence."""
    log_moved = jnp.array([[0.9, 0.3, 0.9, 0.3, 0.2, 0.2, jnp.nan]])
    advantages = jnp.array([[-1.0, -1.0, 1.0, 1.0, -1.0, -1.0, jnp.nan]])
    mask = jnp.arange(7)[None] < 6
    sequences = jnp.array([[0, 0, 1, 1, 2, 2, 3]])
    kept = keep_on_policy(log_moved, advantages, mask, sequences, CorrectionConfig(opsm=0.5))
    np.testing.assert_array_equal(kept[0, :6], [0, 0, 1, 1, 1, 1])
