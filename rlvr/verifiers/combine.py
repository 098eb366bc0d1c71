"""Several verifiers on one completion: a weighted sum, and gates that come before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rlvr import errors, types
from rlvr.verifiers import payloads

# (verifier, completion, reference, payload) -> a well-formed verdict: `base.verify`.
Verify = Callable[[str, str, str, Mapping[str, Any]], types.Verdict]

_OWN = ("name", "verifier", "weight", "gate")
_ROUNDING = 1e-9  # 0.1 + 0.2 + 0.7 is a full score


class _Component(NamedTuple):
    name: str
    verifier: str
    weight: float
    gate: bool
    reference: str
    payload: Mapping[str, Any]


def verify_combine(completion: str, reference: str, payload: Mapping[str, Any], verify: Verify) -> types.Verdict:
    """Asks every component, gates first, and adds up what they say: sum of weight * score.

    Payload:
        parts: a list of components, each an object with
            "verifier": its name;
            "name": what it is called in the verdict's parts, default the verifier's name;
            "weight": a number, default 1 (negative: what it scores is taken off);
            "gate": true if nothing else counts unless its status is "correct", default false;
            "gold" and all other fields: that verifier's.
        Other fields of the row are defaults for every component's fields; so is the reference.

    A gate that is not passed makes the score 0, whatever the weights, and lends its status; no further component is
    asked then, unless the gate is passed leniently: the lenient score needs the others. A component that is unscorable
    is None in the parts, and makes the whole unscorable unless it is no gate and its weight is 0. The status is
    "correct" from a score of 1.

    Returns:
        a verdict with parts "<name>" (None where unscorable or not asked), "<name>/lenient" and "<name>/<part>" for the
        other parts of each component. The audit's flags keep their names. "gold", where a component has it, is the
        same sum with the gold scores in place of the scores.

    Raises:
        DataError: the parts cannot be used.
    """
    components = sorted(_read_components(reference, payload), key=lambda c: not c.gate)  # stable: gates come first
    verdicts: dict[str, types.Verdict] = {}
    failed: tuple[_Component, types.Verdict] | None = None
    for component in components:
        verdict = verify(component.verifier, completion, component.reference, component.payload)
        verdicts[component.name] = verdict
        if component.gate and verdict.status != "correct":
            failed = failed or (component, verdict)
            if verdict.status == "error" or (verdict.parts["lenient"] or 0.0) < 1:
                break
    return _add_up(components, verdicts, failed)


def _add_up(
    components: list[_Component],
    verdicts: Mapping[str, types.Verdict],
    failed: tuple[_Component, types.Verdict] | None,
) -> types.Verdict:
    parts = _name_parts(components, verdicts)
    needed = [c for c in components if c.gate or c.weight]
    unscorable = [c.name for c in needed if c.name in verdicts and verdicts[c.name].score is None]
    # Behind a gate that is not passed only the lenient score is open, and that is not worth losing the verdict for.
    if unscorable and (failed is None or failed[1].score is None):
        name = unscorable[0]
        return types.Verdict(None, "error", f"{name!r} is unscorable: {verdicts[name].detail}", parts=parts)
    asked = not unscorable and all(c.name in verdicts for c in components)
    lenient = _sum(needed, verdicts, "lenient") if asked else 0.0
    has_gold = any("gold" in verdict.parts for verdict in verdicts.values())
    if failed is not None:
        gate, verdict = failed
        parts |= {"strict": 0.0, "lenient": max(0.0, lenient)} | ({"gold": 0.0} if has_gold else {})
        return types.Verdict(0.0, verdict.status, f"gate {gate.name!r}: {verdict.detail}", parts=parts)
    score = _sum(needed, verdicts, "strict")
    parts |= {"strict": score, "lenient": max(score, lenient)}
    parts |= {"gold": _sum(needed, verdicts, "gold")} if has_gold else {}
    statuses = {verdicts[c.name].status for c in needed}
    status = "correct" if score >= 1 else "unparsed" if statuses == {"unparsed"} else "wrong"
    detail = ", ".join(f"{c.name} {verdicts[c.name].status}" for c in components)
    return types.Verdict(score, status, detail, parts=parts)


def _sum(components: list[_Component], verdicts: Mapping[str, types.Verdict], part: str) -> float:
    """Returns the weighted sum of one part, or of the score where a component has no such part."""
    found = [(c.weight, verdicts[c.name].parts.get(part), verdicts[c.name].score) for c in components]
    total = math.fsum(weight * (score or 0.0 if value is None else value) for weight, value, score in found)
    return 1.0 if abs(total - 1) < _ROUNDING else total


def _name_parts(components: list[_Component], verdicts: Mapping[str, types.Verdict]) -> dict[str, float | None]:
    parts: dict[str, float | None] = {}
    for component in components:
        verdict = verdicts.get(component.name)
        parts[component.name] = verdict.score if verdict else None
        for part, value in (verdict.parts if verdict else {}).items():
            if part.startswith(types.AUDIT_PREFIX):  # a flag is a flag, whichever component raised it
                parts[part] = max(value or 0.0, parts.get(part) or 0.0)
            elif part != "strict":
                parts[f"{component.name}/{part}"] = value
    return parts


def _read_components(reference: str, payload: Mapping[str, Any]) -> list[_Component]:
    accepted = "a list of one or more objects with a verifier"
    parts = payloads.read_present(payload, "parts", accepted)
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise payloads.make_error("parts", parts, accepted)
    shared = {field: value for field, value in payload.items() if field not in ("parts", *_OWN)}
    components = [_read_component(reference, shared, part, f"parts[{i}]") for i, part in enumerate(parts)]
    names = [component.name for component in components]
    for name in names:
        if not name or name in ("strict", "lenient", "gold") or "/" in name or names.count(name) > 1:
            raise payloads.make_error(
                "name", name, "a name of its own for every part, without '/', not strict, lenient or gold"
            )
    if not any(component.gate or component.weight for component in components):
        raise errors.DataError("parts: no part is a gate or has a weight (accepted: at least one that counts)")
    return components


def _read_component(reference: str, shared: Mapping[str, Any], part: Mapping[str, Any], where: str) -> _Component:
    try:
        verifier = payloads.read_text(part, "verifier")
        weight = payloads.read_number(part, "weight", 1.0, least=-math.inf)
        fields = {**shared, **{field: value for field, value in part.items() if field not in _OWN}}
        gold = part.get("gold")
        if isinstance(gold, str):
            reference = fields.pop("gold")
        elif gold is not None and not isinstance(gold, list):
            raise payloads.make_error("gold", gold, "a text or a list of texts")
        return _Component(
            payloads.read_text(part, "name", verifier),
            verifier,
            weight,
            payloads.read_flag(part, "gate"),
            reference,
            fields,
        )
    except errors.DataError as error:
        raise errors.DataError(f"{where}: {error}") from error
