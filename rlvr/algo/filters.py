"""Which prompt groups have something to learn from."""

from __future__ import annotations

import numpy as np

# What the samples of a group are: some right and some wrong, or all alike, or none of them judged.
KINDS = ("mixed", "all_right", "all_wrong", "unscorable")


def sort_groups(right: np.ndarray, valid: np.ndarray) -> list[str]:
    """Returns the kind of each group, one of `KINDS`.

    DAPO (2503.14476) keeps a group if 0 < number of right answers < G: with equal rewards all its advantages are zero.
    What counts is correctness. A shaped reward would not do: a penalty on length makes a spread of any group.

    Args:
        right: [P, G] bool, which samples are right.
        valid: [P, G] bool, which of them count; the others are as if they had not been sampled.
    """
    counted, correct = valid.sum(axis=1), (right & valid).sum(axis=1)
    kinds = np.select(
        [counted == 0, correct == 0, correct == counted], ["unscorable", "all_wrong", "all_right"], "mixed"
    )
    return [str(kind) for kind in kinds]
