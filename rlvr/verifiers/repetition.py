"""How much a completion repeats itself."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from rlvr import types
from rlvr.verifiers import payloads

_MAX_N = 64


def verify_repetition(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """The n-gram repetition penalty of 2502.03373, in [-1, 0] to add to a reward: -(1 - different n-grams / all).

    n-grams are of words (what white space separates), in lower case, over the whole completion. 0 says that no n-gram
    comes twice, or that there are fewer than n words; values near -1 that almost all are repeats.
    parts["repeated"] is the share itself, 1 - different / all. Status "correct" is a share of at most `tolerance`.

    Payload:
        n: words an n-gram, from 1 to 64; 3 where absent.
        tolerance: the share up to which nothing is taken off (beyond it, the whole share is); 0 where absent.

    Raises:
        DataError: a field that cannot be used.
    """
    n = payloads.read_count(payload, "n", 3, least=1)
    if n > _MAX_N:
        raise payloads.make_error("n", n, f"from 1 to {_MAX_N}")
    tolerance = payloads.read_number(payload, "tolerance", 0.0)
    if tolerance > 1:
        raise payloads.make_error("tolerance", tolerance, "from 0 to 1")
    share = measure_repetition(completion.lower().split(), n)
    right = share <= tolerance
    detail = f"{share:.3f} of the {n}-grams are repeats"
    score = 0.0 if right else -share
    return types.Verdict(score, "correct" if right else "wrong", detail, parts={"repeated": share})


def measure_repetition(words: list[str], n: int) -> float:
    """Returns 1 - (different n-grams) / (all n-grams); 0 where there is none."""
    total = len(words) - n + 1
    if total <= 0:
        return 0.0
    ngrams = zip(*(itertools.islice(words, i, None) for i in range(n)), strict=False)
    return 1 - len(set(ngrams)) / total
