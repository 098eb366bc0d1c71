"""Which sequences share a row: each prompt once, followed by its completions, and rows filled as far as they go."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from rlvr import errors


class Bundle(NamedTuple):
    """A prompt and those of its completions that follow it in one row.

    Attributes:
        prompt: number of tokens of the prompt.
        members: indices of the sequences.
        size: tokens in all.
    """

    prompt: int
    members: tuple[int, ...]
    size: int


def pack(
    prompts: Sequence[int], completions: Sequence[int], keys: Sequence[Hashable], length: int
) -> list[list[Bundle]]:
    """Distributes sequences over rows; the result depends on the arguments alone.

    Bundles go whole where they fit, the largest first, each into the row that it fills best; one that no row holds
    is split, and its prompt repeated.

    Args:
        prompts, completions: tokens of each sequence's prompt and completion that are to be in a row.
        keys: sequences with equal keys have equal prompts, which are then shared.
        length: tokens that a row holds.

    Raises:
        DataError: a sequence is longer than a row.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        if prompts[i] + completions[i] > length:
            raise errors.DataError(f"a sequence of {prompts[i] + completions[i]} tokens does not fit a row of {length}")
        groups.setdefault(key, []).append(i)
    bundles: list[Bundle] = []
    for members in groups.values():
        bundles += _split(prompts[members[0]], members, completions, length)
    rows: list[list[Bundle]] = []
    space: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for bundle in sorted(bundles, key=lambda b: -b.size):  # stable: equal sizes stay in their order
        at = bisect.bisect_left(space, (bundle.size, 0))
        free, row = space.pop(at) if at < len(space) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(bundle)
        bisect.insort(space, (free - bundle.size, row))
    return rows


def _split(prompt: int, members: Sequence[int], completions: Sequence[int], length: int) -> list[Bundle]:
    """Splits the completions of one prompt into bundles that each fit a row, the longest first into the fullest."""
    room = length - prompt
    if sum(completions[i] for i in members) > room:
        members = sorted(members, key=lambda i: -completions[i])
    parts: list[tuple[list[int], int]] = []
    for i in members:
        fits = [k for k, (_, used) in enumerate(parts) if used + completions[i] <= room]
        if not fits:
            parts.append(([], 0))
            fits = [len(parts) - 1]
        best = max(fits, key=lambda k: parts[k][1])
        parts[best] = ([*parts[best][0], i], parts[best][1] + completions[i])
    return [Bundle(prompt, tuple(chosen), prompt + used) for chosen, used in parts]


def row_length(longest: int, usual: int) -> int:
    """Returns the length of the rows of a batch: `usual`, or doubled until the longest sequence fits.

    So a run compiles at most 1 + log2(longest possible / usual) forms of a step.
    """
    length = usual
    while length < longest:
        length *= 2
    return length
