"""The table of verifiers, and the one call that turns whatever a verifier does into a well-formed verdict.

A verifier is a function (completion text, reference answer, payload) -> Verdict. Besides the names of
`VERIFIERS`, "package.module:function" names one of the user's own.
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
from rlvr.verifiers import math as math_equivalence
from rlvr.verifiers import plain, reasoning

Verifier = Callable[[str, str, Mapping[str, Any]], types.Verdict]

VERIFIERS: dict[str, Verifier] = {
    "exact": plain.verify_exact,
    "numeric": plain.verify_numeric,
    "math": math_equivalence.verify_math,
    "reasoning_gym": reasoning.verify_reasoning_gym,
}

# What a worker does before its first item, so that no item pays for imports.
_WARM_UPS: dict[str, Callable[[], None]] = {
    "math": math_equivalence.warm_up,
    "reasoning_gym": reasoning.warm_up,
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

    A verifier that raises, or returns anything but a well-formed verdict, gives status "error" and score 0.
    """
    start = time.perf_counter()
    try:
        verdict = _checked(name, load(name)(completion, reference, payload))
    except (Exception, SystemExit) as error:  # sys.exit() in a verifier must not end the worker
        verdict = make_failure("error", f"verifier {name!r} raised {type(error).__name__}: {error}")
    return dataclasses.replace(verdict, seconds=time.perf_counter() - start)


def make_failure(status: str, detail: str, seconds: float = 0.0) -> types.Verdict:
    """Returns a verdict of score 0 with the given status."""
    return types.Verdict(0.0, status, detail[:_MAX_DETAIL], seconds, {"strict": 0.0, "lenient": 0.0})


def _checked(name: str, verdict: Any) -> types.Verdict:
    """Returns the verdict with plain floats, or an "error" verdict that says what is wrong with it."""
    if not isinstance(verdict, types.Verdict):
        return make_failure("error", f"verifier {name!r} returned a {type(verdict).__name__}, not a Verdict")
    parts = {"strict": verdict.score, "lenient": verdict.score, **verdict.parts}
    for part, value in {"score": verdict.score, **parts}.items():
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            return make_failure("error", f"verifier {name!r} returned {part}={value!r}, not a finite number")
    if verdict.status not in types.STATUSES:
        return make_failure(
            "error",
            f"verifier {name!r} returned status={verdict.status!r} (accepted: {', '.join(types.STATUSES)})",
        )
    if parts["strict"] != verdict.score:
        return make_failure(
            "error", f"verifier {name!r} returned score={verdict.score!r} but strict={parts['strict']!r}"
        )
    return dataclasses.replace(
        verdict,
        score=float(verdict.score),
        detail=str(verdict.detail)[:_MAX_DETAIL],
        parts={str(part): float(value) for part, value in parts.items()},
    )
