"""Whether a response follows its instructions: strict and loose, as IFEval and IFBench score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlvr import types
from rlvr.verifiers import payloads
from rlvr.verifiers.instructions.registry import bind_instruction

_MAX_CHARACTERS = 1_000_000


def verify_instructions(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Right if the response (what follows the last `</think>`) follows every instruction.

    Strict looks at the response as it is. Lenient is the published "loose" reading: an instruction is followed if any
    of eight variants follows it (`make_variants`). A blank response follows nothing. The score is 1 or 0 ("prompt-level
    strict"); parts["fraction"] and parts["fraction_lenient"] are the shares of instructions followed
    ("instruction-level").

    Payload:
        instruction_id_list: published ids, the keys of `registry.INSTRUCTIONS`.
        kwargs: a list with one object of arguments for each; null arguments count as absent.
        prompt: not looked at: what must be repeated stands in kwargs.

    Raises:
        DataError: ids or kwargs that are missing, not known or cannot be used.
    """
    identifiers = payloads.read_texts(payload, "instruction_id_list")
    kwargs = payloads.read_present(payload, "kwargs", "a list of objects, one for each instruction")
    if not isinstance(kwargs, list) or len(kwargs) != len(identifiers):
        raise payloads.make_error("kwargs", kwargs, f"a list of {len(identifiers)} objects, one for each instruction")
    checks = [bind_instruction(*pair) for pair in zip(identifiers, kwargs, strict=True)]
    response = payloads.find_response(completion)
    if response is None:
        return types.Verdict(0.0, "unparsed", "the reasoning was never closed")
    if len(response) > _MAX_CHARACTERS:
        return types.Verdict(0.0, "unparsed", f"{len(response)} characters are more than the {_MAX_CHARACTERS} read")
    strict = [bool(response.strip()) and check(response) for check in checks]
    variants = make_variants(response)[1:]
    loose = [kept or any(v.strip() and check(v) for v in variants) for kept, check in zip(strict, checks, strict=True)]
    broken = [identifier for identifier, kept in zip(identifiers, strict, strict=True) if not kept]
    parts = {
        "strict": float(all(strict)),
        "lenient": float(all(loose)),
        "fraction": sum(strict) / len(strict),
        "fraction_lenient": sum(loose) / len(loose),
    }
    detail = f"not followed: {', '.join(broken)}" if broken else "all followed"
    return types.Verdict(parts["strict"], "wrong" if broken else "correct", detail, parts=parts)


def make_variants(response: str) -> list[str]:
    """Returns the response, then it without its first line, its last, and both; each with and without asterisks."""
    lines = response.split("\n")
    cut = [response] + ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [variant for each in cut for variant in dict.fromkeys((each, each.replace("*", "")))]
