"""Sequences packed into rows, and rows laid out as micro-batches."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr import errors
from rlvr.learner.batch import Row, make_batches
from rlvr.learner.packing import pack, row_length

ROWS = [
    Row((5, 6, 7), np.array([8, 9], np.int32), np.array([-1.0, -2.0], np.float32), 0.5, 0),
    Row((5, 6, 7), np.array([3, 2, 1], np.int32), np.array([-0.1, -0.2, -0.3], np.float32), -1.5, 0),
    Row((1, 1), np.array([2], np.int32), np.array([-4.0], np.float32), 2.0, 1),
]
WEIGHTS = np.array([0.5, 0.25, 2.0])


def test_layout_by_hand() -> None:
    """The shared prompt once, each completion but its last token, and every sampled token scored."""
    reference = [np.array([-7.0, -8.0]), np.array([-1.0, -2.0, -3.0]), np.array([-9.0])]
    batches, places = make_batches(ROWS, micro_rows=2, length=7, weights=WEIGHTS, reference=reference)
    (batch,) = batches
    np.testing.assert_array_equal(batch.tokens, [[5, 6, 7, 8, 3, 2, 0], [1, 1, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 3, 4, 0], [0, 1, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.segments, [[0, 0, 0, 1, 2, 2, -1], [0, 0, -1, -1, -1, -1, -1]])
    np.testing.assert_array_equal(batch.prefixes, [[0, 0, 0, 0, 0, 0, -1], [0, 0, -1, -1, -1, -1, -1]])
    np.testing.assert_array_equal(batch.counts, [[2, 2, 2, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.mask.sum(-1), [5, 1])
    np.testing.assert_array_equal(batch.sources[0, :5], [2, 3, 2, 4, 5])  # both completions begin after the prompt
    np.testing.assert_array_equal(batch.targets[0, :5], [8, 9, 3, 2, 1])
    np.testing.assert_array_equal((batch.sources[1, 0], batch.targets[1, 0]), (1, 2))
    np.testing.assert_allclose(batch.old_logprobs[0, :5], [-1, -2, -0.1, -0.2, -0.3])
    np.testing.assert_allclose(batch.reference_logprobs[0, :6], [-7, -8, -1, -2, -3, 0])
    np.testing.assert_allclose(batch.advantages[0, :6], [0.5, 0.5, -1.5, -1.5, -1.5, 0])
    np.testing.assert_allclose(batch.weights[:, :6], [[0.5, 0.5, 0.25, 0.25, 0.25, 0], [2, 0, 0, 0, 0, 0]])
    assert places == [(0, 0, 0, 3, 0), (0, 0, 0, 4, 2), (0, 1, 0, 2, 0)]
    assert batch.choices is None and batch.old_choices is None


def test_prompts_with_other_experts_are_not_shared() -> None:
    rng = np.random.default_rng(0)
    choices = [rng.integers(0, 4, size=(len(row.prompt) + len(row.completion), 1, 2)).astype(np.int16) for row in ROWS]
    rows = [row._replace(choices=c) for row, c in zip(ROWS, choices, strict=True)]
    (batch,), places = make_batches(rows, micro_rows=1, length=16, weights=WEIGHTS)
    assert batch.counts.max() == 1
    choices[1][:3] = choices[0][:3]
    (batch,), places = make_batches(rows, micro_rows=1, length=16, weights=WEIGHTS)
    assert batch.counts.max() == 2
    for at, row in zip(places, rows, strict=True):
        prompt = len(row.prompt)
        np.testing.assert_array_equal(batch.choices[0, at.prompt : at.prompt + prompt], row.choices[:prompt])
        run = batch.choices[0, at.completion : at.completion + len(row.completion) - 1]
        np.testing.assert_array_equal(run, row.choices[prompt:-1])
    assert np.all(batch.choices[batch.counts == 0] == -1)


SEQUENCES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(0, 3)), min_size=1, max_size=24)


@settings(max_examples=150, deadline=None)
@given(SEQUENCES, st.integers(1, 3))
def test_every_token_is_laid_out_and_sees_its_sequence(spec: list[tuple[int, int, int]], micro_rows: int) -> None:
    rng = np.random.default_rng(len(spec))
    prompts = {group: tuple(rng.integers(1, 99, size=1 + 2 * group).tolist()) for _, _, group in spec}
    rows = [
        Row(prompts[group], rng.integers(1, 99, size=c).astype(np.int32), np.full(c, float(i)), 1.0, group)
        for i, (_, c, group) in enumerate(spec)
    ]
    batches, places = make_batches(rows, micro_rows=micro_rows, length=20, weights=np.arange(len(rows)) + 1.0)
    assert all(leaf.shape[0] == micro_rows for batch in batches for leaf in jax.tree.leaves(batch))
    for i, (row, at) in enumerate(zip(rows, places, strict=True)):
        batch, r, count = batches[at.batch], at.row, len(row.completion)
        own = [*range(at.prompt, at.prompt + len(row.prompt)), *range(at.completion, at.completion + count - 1)]
        np.testing.assert_array_equal(batch.tokens[r, own], [*row.prompt, *row.completion[:-1]])
        np.testing.assert_array_equal(batch.positions[r, own], np.arange(len(own)))
        segment = batch.segments[r]
        sees = (segment == segment[own[-1]]) | (segment == batch.prefixes[r, own[-1]])
        np.testing.assert_array_equal(np.flatnonzero(sees), sorted(own))  # its sequence, all of it, and nothing else
        scored = (r, slice(at.scored, at.scored + count))
        np.testing.assert_array_equal(batch.targets[scored], row.completion)
        np.testing.assert_array_equal(batch.sources[scored], own[len(row.prompt) - 1 :])
        np.testing.assert_array_equal(batch.old_logprobs[scored], i)
        np.testing.assert_array_equal(batch.weights[scored], i + 1)
    sampled = sum(len(row.completion) for row in rows)
    assert sum(int(batch.mask.sum()) for batch in batches) == sampled
    assert sum(float(batch.counts.sum()) for batch in batches) == sum(row.run_tokens for row in rows)


def test_rows_are_filled() -> None:
    """32 groups of 8 completions of very different lengths: no more than a tenth of the places is empty."""
    rng = np.random.default_rng(0)
    completions = np.clip(rng.lognormal(3.0, 1.0, size=256).astype(int), 1, 200)
    prompts = np.repeat(rng.integers(5, 40, size=32), 8)
    packed = pack(prompts.tolist(), completions.tolist(), (np.arange(256) // 8).tolist(), 256)
    assert sorted(i for row in packed for bundle in row for i in bundle.members) == list(range(256))
    sizes = [sum(bundle.size for bundle in row) for row in packed]
    assert max(sizes) <= 256
    assert all(b.size == b.prompt + sum(completions[i] for i in b.members) for row in packed for b in row)
    assert sum(sizes) / (256 * len(packed)) > 0.9
    assert sum(sizes) < 1.15 * (completions.sum() + prompts[::8].sum())  # few prompts are repeated


def test_a_sequence_that_does_not_fit_is_refused() -> None:
    with pytest.raises(errors.DataError, match="9 tokens does not fit a row of 8"):
        pack([4], [5], [0], 8)


def test_rows_are_twice_as_long_where_a_sequence_is() -> None:
    assert [row_length(n, 24) for n in (1, 24, 25, 48, 49, 300)] == [24, 24, 48, 48, 96, 384]
