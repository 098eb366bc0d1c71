"""Whether a completion has the tags it was asked for, as in the format reward of DeepSeek-R1 (2501.12948)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlvr import types
from rlvr.verifiers import payloads

_NAME = re.compile(r"[A-Za-z][\w-]*")


def verify_format(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Right if each tag is there exactly once as `<tag>...</tag>`, in order, filled, and nothing stands outside.

    White space may stand anywhere. "Filled" means that more than white space is inside: empty pairs would earn the
    reward for nothing. Lenient: the same pairs, once each and in order, with other text allowed around and between.

    Payload:
        tags: the names in order; ["think", "answer"] where absent.
        prefilled: true if the prompt already ends with the first opening tag, which the completion then lacks.
        rest: true if text follows the last pair (`<think>...</think> the answer`); it must not be blank.

    Raises:
        DataError: a field that cannot be used.
    """
    tags = payloads.read_texts(payload, "tags", ["think", "answer"])
    for tag in tags:
        if not _NAME.fullmatch(tag) or tags.count(tag) > 1:
            raise payloads.make_error("tags", tags, "different names of letters, digits, _ and -")
    rest = payloads.read_flag(payload, "rest")
    text = f"<{tags[0]}>{completion}" if payloads.read_flag(payload, "prefilled") else completion
    problem, outside = _find_problem(text, tags, rest)
    strict, lenient = float(not problem and not outside), float(not problem)
    detail = problem or outside or "well formed"
    status = "correct" if strict else "wrong"
    return types.Verdict(strict, status, detail, parts={"strict": strict, "lenient": lenient})


def _find_problem(text: str, tags: list[str], rest: bool) -> tuple[str, str]:
    """Returns (what is wrong with the pairs, what stands outside them); "" where nothing."""
    position, outside = 0, ""
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        for mark in (opening, closing):
            if (count := text.count(mark)) != 1:
                return f"{mark} stands {count} times, not once", ""
        start, end = text.index(opening), text.index(closing)
        if start < position or end < start:
            return f"{opening if start < position else closing} is out of order", ""
        if not text[start + len(opening) : end].strip():
            return f"{opening} holds nothing", ""
        if text[position:start].strip():
            outside = outside or f"text before {opening}"
        position = end + len(closing)
    if rest and not text[position:].strip():
        return f"nothing follows </{tags[-1]}>", ""
    if not rest and text[position:].strip():
        outside = outside or f"text after </{tags[-1]}>"
    return "", outside
