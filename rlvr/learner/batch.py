"""Rows for the learner: sequences packed into rows of one length, rows into micro-batches."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rlvr.learner.packing import Bundle, pack


class Row(NamedTuple):
    """One sequence to learn from.

    Attributes:
        prompt, completion: token ids.
        old_logprobs: [C] of the completion at sampling.
        advantage: of every sampled token, or [C] of each.
        group: sequences with equal numbers were sampled from one prompt.
        choices: experts recorded at sampling (`rlvr.types.Completion`); all rows of a batch have them, or none.
        old_choices: the same as chosen before the step's first update, or None.
        support: [C, V / 8] which tokens could have been sampled (`rlvr.types.Completion`), or None if all could; all
            rows of a batch have them, or none.
        proximal_logprobs: [C] before the step's first update, or None.
        high_entropy, high_covariance, small_moment: [C] bool which tokens were chosen (`rlvr.algo.selection`), or None.
        truncated: whether the budget of tokens ended it.
        right: whether it is an example to imitate (`ObjectiveConfig.imitation_coef`).
        imitation: weight of its tokens in the imitation's loss, or None.
        values, returns: [C] the critic's values before the step's first update, and what they are to become; or None.
        value_weight: 1, or 0 if the critic learns nothing from it; or None.
        weight: of the sequence in the loss, beside the aggregation's.
        borrowed: whether the completion was sampled behind another prompt than this (`rlvr.algo.distill`), or None; all
            rows of a batch say so, or none.
        other_prompt: behind which the completion is run too, without gradient, for a divergence over the whole
            vocabulary; all rows of a batch have one, or none.
    """

    prompt: Sequence[int]
    completion: np.ndarray
    old_logprobs: Any
    advantage: Any
    group: int
    choices: np.ndarray | None = None
    old_choices: np.ndarray | None = None
    support: np.ndarray | None = None
    proximal_logprobs: np.ndarray | None = None
    high_entropy: np.ndarray | None = None
    high_covariance: np.ndarray | None = None
    small_moment: np.ndarray | None = None
    truncated: bool = False
    right: bool = False
    imitation: float | None = None
    values: np.ndarray | None = None
    returns: np.ndarray | None = None
    value_weight: float | None = None
    weight: float = 1.0
    borrowed: bool | None = None
    other_prompt: Sequence[int] | None = None

    @property
    def run_tokens(self) -> int:
        """How many tokens are run: all but the last, from which nothing is predicted."""
        return len(self.prompt) + max(len(self.completion) - 1, 0)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longer of its prompts."""
        return max(len(self.prompt), len(self.other_prompt or ()))


class Inputs(NamedTuple):
    """The same completions behind other prompts, row by row in the same order; see `TrainBatch` for the fields."""

    tokens: Any
    positions: Any
    segments: Any
    prefixes: Any
    sources: Any


class TrainBatch(NamedTuple):
    """One micro-batch: R packed rows of T tokens, and for each row its sampled tokens, as one list of up to S = 2 T.

    (Of a completion of C tokens C - 1 are run, so that more may be sampled than run.)

    Attributes:
        tokens: [R, T] int32.
        positions: [R, T] int32 position of each token in its own sequence.
        segments, prefixes: [R, T] int32; see `rlvr.policy.packed.Segments`. -1 in padding.
        counts: [R, T] float32 number of sequences that the token is part of: more than one for the tokens of a shared
            prompt, 0 for padding.
        sources: [R, S] int32 place in the row of the token before each sampled one.
        targets: [R, S] int32 the sampled tokens.
        mask: [R, S] bool, 1 on sampled tokens, which stand at the front.
        sequences: [R, S] int32 which of the row's sequences a sampled token belongs to.
        old_logprobs: [R, S] float32, recorded at sampling.
        reference_logprobs: [R, S] float32 of the reference; zeros if they are not known.
        advantages: [R, S] float32.
        weights: [R, S] float32 of each sampled token in the loss (`rlvr.algo.aggregation`).
        choices: [R, T, mixture layers, k] int16 experts recorded at sampling, -1 where there are none; or None.
        old_choices: the same as the policy would choose before the first of the step's updates, or None.
        support: [R, S, V / 8] uint8 which tokens could have been sampled, a bit each; or None if all could.
        proximal_logprobs: [R, S] float32 before the first of the step's updates, or None.
        imitation, values, returns, value_weight: [R, S] float32, see `Row`.
        high_entropy, high_covariance, small_moment, borrowed: [R, S] bool, see `Row`.
        other: the completions behind the rows' `other_prompt`, or None.
    """

    tokens: Any
    positions: Any
    segments: Any
    prefixes: Any
    counts: Any
    sources: Any
    targets: Any
    mask: Any
    sequences: Any
    old_logprobs: Any
    reference_logprobs: Any
    advantages: Any
    weights: Any
    choices: Any = None
    old_choices: Any = None
    support: Any = None
    proximal_logprobs: Any = None
    high_entropy: Any = None
    high_covariance: Any = None
    small_moment: Any = None
    imitation: Any = None
    values: Any = None
    returns: Any = None
    value_weight: Any = None
    borrowed: Any = None
    other: Inputs | None = None

    def columns(self) -> Any:
        """Returns how many columns of S hold all the sampled tokens: scalar int32, of arrays on a device."""
        return jnp.max(jnp.sum(self.mask, axis=-1, dtype=jnp.int32))

    def replay(self, routing: str) -> Any:
        """Returns the experts that the rows use in training, or None for the router's own; see `ObjectiveConfig`."""
        return {"live": None, "rollout": self.choices, "old": self.old_choices}[routing]


# What rows may have of their sampled tokens besides, and how it is laid out.
_OPTIONAL: dict[str, Any] = {
    **dict.fromkeys(("proximal_logprobs", "imitation", "values", "returns", "value_weight"), np.float32),
    **dict.fromkeys(("high_entropy", "high_covariance", "small_moment", "borrowed"), bool),
}


class Place(NamedTuple):
    """Where a sequence was laid out.

    Attributes:
        batch, row: which micro-batch, and which row of it.
        prompt, completion: where its prompt and its completion begin among the row's tokens.
        scored: where its completion begins among the row's sampled tokens.
    """

    batch: int
    row: int
    prompt: int
    completion: int
    scored: int


def make_batches(
    rows: Sequence[Row],
    *,
    micro_rows: int,
    length: int,
    weights: np.ndarray | None = None,
    reference: Sequence[np.ndarray] | None = None,
) -> tuple[list[TrainBatch], list[Place]]:
    """Lays out sequences as micro-batches.

    The tokens of a prompt that several sequences have in common, with the same experts, stand in a row once.

    Args:
        rows: at least one.
        micro_rows: R.
        length: T, more than the `run_tokens` of every sequence, behind either of its prompts.
        weights: [sequences] of each token of each in the loss; 0 if there is none.
        reference: log-probs of each sequence's completion under the reference.

    Returns:
        (micro-batches, the last filled up with empty rows; the place of each sequence).
    """
    # At least 1, so that no more than T completions stand in a row, nor more than 2 T sampled tokens.
    sizes = [max(len(row.completion) - 1, 1) for row in rows]
    packed = pack([row.longest_prompt for row in rows], sizes, [_share_key(row) for row in rows], length)
    batches: list[TrainBatch] = []
    places: dict[int, Place] = {}
    for number, bundles in enumerate(packed):
        micro, r = divmod(number, micro_rows)
        if r == 0:
            batches.append(empty_batch(rows[0], micro_rows, length))
        _fill(batches[micro], micro, r, bundles, rows, weights, reference, places)
        if (other := batches[micro].other) is not None:
            _fill_other(other, r, bundles, rows)
    return batches, [places[i] for i in range(len(rows))]


def _share_key(row: Row) -> Hashable:
    """Sequences of equal keys run the same tokens with the same experts up to the end of the prompt."""
    prompt = len(row.prompt)
    recorded = [None if given is None else given[:prompt].tobytes() for given in (row.choices, row.old_choices)]
    return (tuple(row.prompt), tuple(row.other_prompt or ()), *recorded)


def empty_batch(like: Row, rows: int, length: int) -> TrainBatch:
    """Returns a micro-batch of padding, R `rows` of T `length`, with the optional fields that `like` has."""

    def tokens(value: Any, dtype: Any, *more: int) -> np.ndarray:
        return np.full((rows, length, *more), value, dtype)

    def sampled(dtype: Any) -> np.ndarray:
        return np.zeros((rows, 2 * length), dtype)

    fields: dict[str, Any] = {name: tokens(0, np.int32) for name in ("tokens", "positions")}
    fields |= {name: tokens(-1, np.int32) for name in ("segments", "prefixes")}
    fields |= {name: sampled(np.int32) for name in ("sources", "targets", "sequences")}
    fields |= {name: sampled(np.float32) for name in ("old_logprobs", "reference_logprobs", "advantages", "weights")}
    for name in ("choices", "old_choices"):
        if (given := getattr(like, name)) is not None:
            fields[name] = tokens(-1, np.int16, *given.shape[1:])
    if like.support is not None:
        fields["support"] = np.zeros((rows, 2 * length, like.support.shape[1]), np.uint8)
    for name, dtype in _OPTIONAL.items():
        if getattr(like, name) is not None:
            fields[name] = sampled(dtype)
    if like.other_prompt is not None:
        blank, none = tokens(0, np.int32), tokens(-1, np.int32)
        fields["other"] = Inputs(blank, blank.copy(), none, none.copy(), sampled(np.int32))
    return TrainBatch(counts=tokens(0.0, np.float32), mask=sampled(bool), **fields)


def _fill(
    batch: TrainBatch,
    micro: int,
    r: int,
    bundles: Sequence[Bundle],
    rows: Sequence[Row],
    weights: np.ndarray | None,
    reference: Sequence[np.ndarray] | None,
    places: dict[int, Place],
) -> None:
    """Writes the bundles of one row into row r of a batch, and notes where their sequences went."""
    at = scored = segment = sequence = 0
    for bundle in bundles:
        prompt = len(rows[bundle.members[0]].prompt)
        first, prefix, end = at, segment, at + prompt
        _write(batch, r, at, rows[bundle.members[0]], slice(0, prompt), segment, prefix)
        batch.counts[r, first:end] = len(bundle.members)
        at = end
        for i in bundle.members:
            row, count = rows[i], len(rows[i].completion)
            segment += 1
            _write(batch, r, at, row, slice(prompt, row.run_tokens), segment, prefix)
            run = row.run_tokens - prompt
            batch.counts[r, at : at + run] = 1
            places[i] = Place(micro, r, first, at, scored)
            columns = (r, slice(scored, scored + count))
            batch.sources[columns] = [end - 1, *range(at, at + run)][:count]
            batch.targets[columns] = row.completion
            batch.mask[columns] = True
            batch.sequences[columns] = sequence
            batch.old_logprobs[columns] = row.old_logprobs
            batch.advantages[columns] = row.advantage
            if weights is not None:
                batch.weights[columns] = weights[i]
            if reference is not None:
                batch.reference_logprobs[columns] = reference[i]
            for name in _OPTIONAL:
                if (given := getattr(row, name)) is not None:
                    getattr(batch, name)[columns] = given
            if row.support is not None:
                batch.support[columns] = row.support
            at, scored, sequence = at + run, scored + count, sequence + 1
        segment += 1


def _fill_other(inputs: Inputs, r: int, bundles: Sequence[Bundle], rows: Sequence[Row]) -> None:
    """Writes the same sequences behind their other prompts, the sampled tokens in the order of `_fill`."""
    at = scored = segment = 0
    for bundle in bundles:
        prompt, prefix = list(rows[bundle.members[0]].other_prompt or ()), segment
        end = at + len(prompt)
        _write_inputs(inputs, r, at, prompt, 0, segment, prefix)
        at = end
        for i in bundle.members:
            run, count = rows[i].completion[:-1], len(rows[i].completion)
            segment += 1
            _write_inputs(inputs, r, at, run, len(prompt), segment, prefix)
            inputs.sources[r, scored : scored + count] = [end - 1, *range(at, at + len(run))][:count]
            at, scored = at + len(run), scored + count
        segment += 1


def _write(batch: TrainBatch, r: int, at: int, row: Row, part: slice, segment: int, prefix: int) -> None:
    """Writes the tokens `part` of a sequence into row r of a batch, from `at` on."""
    columns = (r, slice(at, at + part.stop - part.start))
    _write_inputs(batch, r, at, [*row.prompt, *row.completion][part], part.start, segment, prefix)
    for name in ("choices", "old_choices"):
        if (given := getattr(row, name)) is not None:
            getattr(batch, name)[columns] = given[part]


def _write_inputs(
    into: TrainBatch | Inputs,
    r: int,
    at: int,
    tokens: Sequence[int] | np.ndarray,
    start: int,
    segment: int,
    prefix: int,
) -> None:
    """Writes tokens, the first of which has position `start` in its sequence, into row r from `at` on."""
    columns = (r, slice(at, at + len(tokens)))
    into.tokens[columns] = tokens
    into.positions[columns] = np.arange(start, start + len(tokens))
    into.segments[columns] = segment
    into.prefixes[columns] = prefix
