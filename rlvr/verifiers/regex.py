"""Whether a completion matches a regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlvr import errors, types
from rlvr.verifiers import payloads

_MODES = {"search": re.search, "match": re.match, "full": re.fullmatch}
_FLAGS = {"ignore_case": re.IGNORECASE, "multiline": re.MULTILINE, "dot_all": re.DOTALL, "ascii": re.ASCII}


def verify_regex(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Right if the response (what follows the last `</think>`) matches, 1, or does not, 0.

    Strict takes the response as it is, lenient without the white space around it.

    Payload:
        pattern: a pattern of Python's `re`.
        mode: "search" (anywhere, the default), "match" (at the start) or "full" (all of it).
        flags: a list of "ignore_case", "multiline", "dot_all", "ascii".
        negate: true if a match is wrong and its absence right.

    A pattern whose search explodes is stopped by the pool's limit like any other item.

    Raises:
        DataError: a field that is missing or cannot be used, the pattern included.
    """
    pattern = payloads.read_text(payload, "pattern")
    search = _MODES[payloads.read_choice(payload, "mode", _MODES, "search")]
    flags = 0
    for name in payloads.read_texts(payload, "flags", []):
        if name not in _FLAGS:
            raise payloads.make_error("flags", name, ", ".join(_FLAGS), errors.nearest(name, _FLAGS))
        flags |= _FLAGS[name]
    negate = payloads.read_flag(payload, "negate")
    try:
        compiled = re.compile(pattern, flags)
    except (re.error, RecursionError, OverflowError) as error:
        raise payloads.make_error("pattern", pattern, f"a pattern of Python's re; {error}") from error
    response = payloads.find_response(completion)
    if response is None:
        return types.Verdict(0.0, "unparsed", "the reasoning was never closed")
    found = bool(search(compiled, response)) != negate
    lenient = found or bool(search(compiled, response.strip())) != negate
    detail = f"{'a match' if found != negate else 'no match'} of {pattern[:80]!r}"
    parts = {"strict": float(found), "lenient": float(lenient)}
    return types.Verdict(float(found), "correct" if found else "wrong", detail, parts=parts)
