"""The table of verifiers, and the one call that turns whatever a verifier does into a well-formed verdict.

A verifier is a function (completion text, reference answer, payload) -> Verdict. Besides the names of
`VERIFIERS`, "package.module:function" names one of the user's own. A payload with the list "gold" has several
reference answers, any of which will do: the verifier is then asked about one after the other.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import numbers
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rlvr import errors, types
from rlvr.verifiers import (
    audit,
    choice,
    code,
    combine,
    f1,
    length,
    plain,
    reasoning,
    regex,
    repetition,
    rubric,
    schema,
    tool_call,
)
from rlvr.verifiers import format as tags
from rlvr.verifiers import math as math_equivalence
from rlvr.verifiers.instructions import text as instruction_texts
from rlvr.verifiers.instructions import verify as instructions

Verifier = Callable[[str, str, Mapping[str, Any]], types.Verdict]


def _verify_combine(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    return combine.verify_combine(completion, reference, payload, verify)


VERIFIERS: dict[str, Verifier] = {
    "exact": plain.verify_exact,
    "numeric": plain.verify_numeric,
    "math": math_equivalence.verify_math,
    "choice": choice.verify_choice,
    "f1": f1.verify_f1,
    "reasoning_gym": reasoning.verify_reasoning_gym,
    "instructions": instructions.verify_instructions,
    "tool_call": tool_call.verify_tool_call,
    "json_schema": schema.verify_json_schema,
    "regex": regex.verify_regex,
    "format": tags.verify_format,
    "length": length.verify_length,
    "overlong": length.verify_overlong,
    "repetition": repetition.verify_repetition,
    "rubric": rubric.verify_rubric,
    "combine": _verify_combine,
    "code": code.verify_code,
}

# Those that may ask a judge, and those that may run programs.
JUDGED = frozenset(("rubric", "combine"))
SANDBOXED = frozenset(("code", "combine"))


def _warm_up_components() -> None:
    """Warms up whatever a row may name: rows are not known yet. A sandbox is started by the first row that needs it."""
    for name, function in _WARM_UPS.items():
        if name not in ("combine", "code"):
            function()


# What in a completion is looked at for hacks, whatever its verdict; `code` does so itself, knowing which text is code.
_AUDITS: dict[str, Callable[[str], dict[str, float]]] = {
    "math": audit.audit_answer,
    "numeric": audit.audit_answer,
}

# What a worker does before its first item, so that no item pays for imports.
_WARM_UPS: dict[str, Callable[[], None]] = {
    "math": math_equivalence.warm_up,
    "reasoning_gym": reasoning.warm_up,
    "json_schema": schema.warm_up,
    "combine": _warm_up_components,
    "instructions": instruction_texts.warm_up,
    "code": code.warm_up,
}

_MAX_DETAIL = 500


def check_names(names: Iterable[str]) -> None:
    """Raises ConfigError for a name that is neither in `VERIFIERS` nor of the form "package.module:function".

    Imports nothing: whether the user's function exists is found out where it will run, by `load`.
    """
    for name in names:
        module, colon, function = name.partition(":")
        dotted = colon and function.isidentifier() and all(part.isidentifier() for part in module.split("."))
        if name not in VERIFIERS and not dotted:
            raise errors.ConfigError(
                f"verifier={name!r} is not known{errors.nearest(name, VERIFIERS)} "
                f'(accepted: {", ".join(VERIFIERS)}, or "package.module:function")'
            )


def load(name: str) -> Verifier:
    """Returns the verifier of that name.

    Raises:
        ConfigError: there is none.
        Exception: whatever importing the user's module raises.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    check_names([name])
    module_name, _, function_name = name.partition(":")
    module = importlib.import_module(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise errors.ConfigError(
            f"verifier={name!r}: module {module_name!r} has no function {function_name!r}"
            f"{errors.nearest(function_name, known)}"
        )
    return function


def warm_up(name: str) -> None:
    """Loads a verifier and the libraries it stands on. Raises what `load` raises."""
    load(name)
    if name in _WARM_UPS:
        _WARM_UPS[name]()


def verify(name: str, completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Runs one verifier in this process, without a time limit, and returns a well-formed verdict.

    A verifier that raises, or returns anything but a well-formed verdict, gives status "error" and no score. Of
    several gold answers (see above) the best verdict counts; an "error" for one of them makes the whole unscorable,
    unless another is met in full.
    """
    start = time.perf_counter()
    if "gold" in payload:
        verdict = _verify_any(name, completion, payload)
    else:
        verdict = _verify_one(name, completion, reference, payload)
    if name in _AUDITS and verdict.score is not None:
        verdict = dataclasses.replace(verdict, parts={**verdict.parts, **_AUDITS[name](completion)})
    return dataclasses.replace(verdict, seconds=time.perf_counter() - start)


def _verify_one(name: str, completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    try:
        return _checked(name, load(name)(completion, reference, payload))
    except (Exception, SystemExit) as error:  # sys.exit() in a verifier must not end the worker
        return make_failure("error", f"verifier {name!r} raised {type(error).__name__}: {error}")


def _verify_any(name: str, completion: str, payload: Mapping[str, Any]) -> types.Verdict:
    golds = payload["gold"]
    if not isinstance(golds, list) or not golds or not all(isinstance(gold, str) for gold in golds):
        said = f"gold={golds!r:.80} must be a list of at least one text"
        return make_failure("error", f"verifier {name!r}: the payload's {said}")
    rest = {field: value for field, value in payload.items() if field != "gold"}
    verdicts = []
    for gold in golds:
        verdicts.append(_verify_one(name, completion, gold, rest))
        if verdicts[-1].status == "correct":
            return verdicts[-1]
    failed = [verdict for verdict in verdicts if verdict.score is None]
    if failed:
        return failed[0]
    # Among equal scores a read answer says more than an unread one.
    best = max(verdicts, key=lambda v: (v.score, -types.STATUSES.index(v.status)))
    lenient = max(v.parts["lenient"] or 0.0 for v in verdicts)
    return dataclasses.replace(best, parts={**best.parts, "lenient": lenient})


def make_failure(status: str, detail: str, seconds: float = 0.0) -> types.Verdict:
    """Returns a verdict with the given status: unscorable if that is "error", else of score 0."""
    score = None if status == "error" else 0.0
    return types.Verdict(score, status, detail[:_MAX_DETAIL], seconds, {"strict": score, "lenient": score})


def _checked(name: str, verdict: Any) -> types.Verdict:
    """Returns the verdict with plain floats, or an "error" verdict that says what is wrong with it."""
    if not isinstance(verdict, types.Verdict):
        return make_failure("error", f"verifier {name!r} returned a {type(verdict).__name__}, not a Verdict")
    said = _find_fault(verdict)
    if said:
        return make_failure("error", f"verifier {name!r} returned {said}")
    parts = {"strict": verdict.score, "lenient": verdict.score, **verdict.parts}
    return dataclasses.replace(
        verdict,
        score=_plain(verdict.score),
        detail=str(verdict.detail)[:_MAX_DETAIL],
        parts={str(part): _plain(value) for part, value in parts.items()},
    )


def _find_fault(verdict: types.Verdict) -> str:
    """Returns what is wrong with a verdict, "" if nothing."""
    if verdict.status not in types.STATUSES:
        return f"status={verdict.status!r} (accepted: {', '.join(types.STATUSES)})"
    for part, value in {"score": verdict.score, **verdict.parts}.items():
        if value is not None and not (isinstance(value, numbers.Real) and math.isfinite(value)):
            return f"{part}={value!r}, neither a finite number nor None"
    score = verdict.score
    if (score is None) != (verdict.status == "error"):
        return f"score={score!r} with status {verdict.status!r} (None goes with 'error', and only with it)"
    strict, lenient = verdict.parts.get("strict", score), verdict.parts.get("lenient", score)
    if strict != score:
        return f"score={score!r} but strict={strict!r}"
    if (lenient is None) != (score is None):
        return f"score={score!r} but lenient={lenient!r}"
    return ""


def _plain(value: float | None) -> float | None:
    return None if value is None else float(value)
