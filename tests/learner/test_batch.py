"""Rows laid out as micro-batches."""

import jax
import numpy as np
import pytest

from rlvr import errors
from rlvr.learner.batch import Row, bucket, make_batch

ROWS = [
    Row((5, 6, 7), np.array([8, 9], np.int32), np.array([-1.0, -2.0], np.float32), 0.5, 0),
    Row((4,), np.array([3, 2, 1], np.int32), np.array([-0.1, -0.2, -0.3], np.float32), -1.5, 0),
    Row((1, 1), np.array([2], np.int32), np.array([-4.0], np.float32), 2.0, 1),
]


def test_layout_by_hand() -> None:
    batch = make_batch(ROWS, micro_rows=2, length=6, columns=4, aggregation="seq_mean_token_mean", budget=4)
    assert all(leaf.shape[:2] == (2, 2) for leaf in jax.tree.leaves(batch))
    np.testing.assert_array_equal(
        batch.tokens, [[[5, 6, 7, 8, 9, 0], [4, 3, 2, 1, 0, 0]], [[1, 1, 2, 0, 0, 0], [0] * 6]]
    )
    np.testing.assert_array_equal(batch.lengths, [[5, 4], [3, 0]])
    np.testing.assert_array_equal(batch.positions[0, :, :3] * batch.mask[0, :, :3], [[3, 4, 0], [1, 2, 3]])
    np.testing.assert_array_equal(batch.mask.sum(-1), [[2, 3], [1, 0]])
    np.testing.assert_allclose(batch.old_logprobs[0], [[-1, -2, 0, 0], [-0.1, -0.2, -0.3, 0]])
    np.testing.assert_allclose(batch.advantages[0], [[0.5, 0.5, 0, 0], [-1.5, -1.5, -1.5, 0]])
    # Three sequences: the row that only fills up is none, and takes part in no denominator.
    np.testing.assert_allclose(batch.weights[0], [[1 / 6, 1 / 6, 0, 0], [1 / 9, 1 / 9, 1 / 9, 0]])
    np.testing.assert_allclose(batch.weights[1], [[1 / 3, 0, 0, 0], [0] * 4])
    # What a scored position names is the sampled token itself.
    for i, row in enumerate(ROWS):
        m, r = divmod(i, 2)
        np.testing.assert_array_equal(batch.tokens[m, r][batch.positions[m, r, : len(row.completion)]], row.completion)


@pytest.mark.parametrize("micro_rows", [1, 2, 3, 5])
def test_weights_do_not_depend_on_the_split(micro_rows: int) -> None:
    batch = make_batch(ROWS, micro_rows=micro_rows, length=6, columns=4, aggregation="token_mean", budget=4)
    np.testing.assert_allclose(batch.weights[batch.mask], 1 / 6, rtol=1e-6)
    assert batch.mask.sum() == 6 and np.all(batch.weights[~batch.mask] == 0)


@pytest.mark.parametrize(("length", "columns"), [(4, 4), (6, 2)])
def test_a_row_that_does_not_fit_is_refused(length: int, columns: int) -> None:
    with pytest.raises(errors.DataError, match="does not fit"):
        make_batch(ROWS, micro_rows=2, length=length, columns=columns, aggregation="token_mean", budget=4)


def test_bucket_is_the_smallest_that_holds() -> None:
    assert [bucket(n, (8, 16), 20) for n in (1, 8, 9, 16, 17, 20)] == [8, 8, 16, 16, 20, 20]
