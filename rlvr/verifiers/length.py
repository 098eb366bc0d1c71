"""How long a completion is: within bounds or near a target, and the soft punishment of running out of budget.

Tokens are those that were sampled. Only the sampler knows their number: it comes in the payload as
`completion_tokens`, which collection and the host callback add to every item, and rows of a file carry themselves.
Nothing here ever counts characters in the place of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlvr import types
from rlvr.verifiers import payloads

UNITS = ("tokens", "words", "characters")


def count_units(completion: str, payload: Mapping[str, Any]) -> tuple[int, str]:
    """Returns (how many, of what): payload["unit"] is one of `UNITS`, "tokens" where absent.

    Words are what white space separates; characters are code points.

    Raises:
        DataError: an unknown unit, or tokens are asked for and payload["completion_tokens"] is not a count.
    """
    unit = payloads.read_choice(payload, "unit", UNITS, "tokens")
    if unit == "tokens":
        return payloads.read_count(payload, "completion_tokens"), unit
    return (len(completion.split()) if unit == "words" else len(completion)), unit


def verify_length(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Scores the length n of the whole completion, reasoning included; status "correct" is n within what was asked.

    Payload, one of:
        min and/or max: 1 if min <= n <= max, else 0. With `alpha` and max alone, L1-Max of 2503.04697:
            clip(alpha (max - n) + delta, 0, 1), where `delta` is 0.5 if absent.
        target: L1-Exact, max(0, 1 - alpha |n - target|), where `alpha` is 1 / max(target, 1) if absent.
    and `unit`, see `count_units`.

    Raises:
        DataError: a field that is missing or cannot be used, or fields that do not go together.
    """
    n, unit = count_units(completion, payload)
    given = [field for field in ("min", "max", "target") if payload.get(field) is not None]
    soft = payload.get("alpha") is not None
    if not given or ("target" in given and len(given) > 1) or (soft and "min" in given):
        accepted = "min and/or max; max with alpha; or target"
        raise payloads.make_error("min, max, target", {field: payload[field] for field in given}, accepted)
    if given == ["target"]:
        target = payloads.read_count(payload, "target")
        alpha = payloads.read_number(payload, "alpha", 1 / max(target, 1))
        score, right, wanted = max(0.0, 1 - alpha * abs(n - target)), n == target, f"{target}"
    elif soft:
        high = payloads.read_count(payload, "max")
        alpha, delta = payloads.read_number(payload, "alpha"), payloads.read_number(payload, "delta", 0.5)
        score, right, wanted = min(1.0, max(0.0, alpha * (high - n) + delta)), n <= high, f"at most {high}"
    else:
        low = payloads.read_count(payload, "min", 0)
        most = payloads.read_count(payload, "max") if "max" in given else None
        if most is not None and most < low:
            raise payloads.make_error("max", most, f"at least min={low}")
        right = low <= n and (most is None or n <= most)
        score, wanted = float(right), f"{low} to {'any' if most is None else most}"
    detail = f"{n} {unit}, wanted {wanted}"
    return types.Verdict(score, "correct" if right else "wrong", detail, parts={"length": float(n)})


def verify_overlong(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """The soft overlong punishment of DAPO (2503.14476, equation 13): a penalty in [-1, 0] to add to a reward.

    With n tokens, the cap L = `max_tokens` and the buffer c = `buffer`: 0 up to L - c, then (L - c - n) / c, and -1
    beyond L. A completion cut at the cap has n = L and gets -1. Status "correct" is no punishment.

    Payload:
        max_tokens: the cap, the budget of sampling.
        buffer: how many tokens before the cap the punishment starts; from 1 to max_tokens.
        completion_tokens: n; see `count_units`.

    Raises:
        DataError: a field that is missing or cannot be used.
    """
    n = payloads.read_count(payload, "completion_tokens")
    cap = payloads.read_count(payload, "max_tokens", least=1)
    buffer = payloads.read_count(payload, "buffer", least=1)
    if buffer > cap:
        raise payloads.make_error("buffer", buffer, f"from 1 to max_tokens={cap}")
    score = min(0.0, max(-1.0, (cap - buffer - n) / buffer))
    detail = f"{n} tokens, punished from {cap - buffer} to {cap}"
    return types.Verdict(score, "wrong" if score < 0 else "correct", detail, parts={"length": float(n)})
