"""Overlap of words, as SQuAD counts it (Rajpurkar et al., 2016, https://arxiv.org/abs/1606.05250)."""

from __future__ import annotations

import dataclasses
import re
import string
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rlvr import types
from rlvr.verifiers import extract
from rlvr.verifiers.judge import check_reference, judge

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def verify_f1(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Scores the F1 of the words that answer and reference share: 2 P R / (P + R), words counted with multiplicity.

    Both are put in lower case, without ASCII punctuation and the articles a, an, the. The score is a fraction; status
    is "correct" only at 1. parts["exact_match"] is 1 if the normalised texts are equal. Where no answer format is
    asked for, the answer is the last box, `<answer>` or "####" line, else the whole completion behind its reasoning.

    Args:
        completion: what the policy wrote.
        reference: the right answer. A reference of nothing but articles and punctuation is matched by none but such.
        payload: may carry "answer_format"; see `judge`.

    Raises:
        DataError: the reference is empty.
    """
    wanted = normalise(check_reference(reference))
    verdict = judge(completion, reference, payload, lambda text: score(normalise(text), wanted), marks=extract.MARKUP)
    readings = extract.extract_strict(completion, payload.get("answer_format"), marks=extract.MARKUP)
    exact = any(normalise(reading) == wanted for reading in readings)
    return dataclasses.replace(verdict, parts={**verdict.parts, "exact_match": float(exact)})


def normalise(text: str) -> list[str]:
    """Returns the words of a text, as SQuAD's evaluation script normalises them."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def score(answer: list[str], wanted: list[str]) -> float:
    """Returns the F1 of two lists of words; of which one is empty, whether both are."""
    if not answer or not wanted:
        return float(answer == wanted)
    shared = sum((Counter(answer) & Counter(wanted)).values())
    return 2 * shared / (len(answer) + len(wanted))
