"""The scorers that come with the generators of reasoning-gym."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from rlvr import errors, types
from rlvr.verifiers import extract
from rlvr.verifiers.judge import judge


def warm_up() -> None:
    """Imports reasoning-gym, which takes seconds."""
    import reasoning_gym  # noqa: F401


def verify_reasoning_gym(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Scores the answer as the generator `payload["dataset"]` does for `payload["entry"]`.

    The score is whatever the generator returns: many give partial credit. Only 1 or more counts as correct. An
    answer that makes the scorer fail, where the entry's own answer does not, cannot be read and has no score of its
    own: "unparsed".

    Args:
        completion: what the policy wrote.
        reference: the reference answer; the entry's own where this is "".
        payload: "dataset", a generator's name; "entry", the problem as the generator made it; may have "options",
            the generator's, for scorers that depend on them, and "answer_format" (see `judge.judge`).

    Raises:
        DataError: a field is missing or of the wrong type, there is no such generator, it refuses the options, or its
            scorer cannot deal with the entry.
    """
    entry, options = _read_object(payload, "entry"), _read_object(payload, "options", {})
    score = _load_scorer(_read_dataset(payload), json.dumps(options, sort_keys=True))
    missing = [field for field in ("answer", "metadata") if field not in entry]
    if missing:
        raise errors.DataError(f"the entry lacks {', '.join(missing)} (it has {', '.join(entry) or 'nothing'})")
    oracle = entry["answer"]

    def score_answer(answer: str) -> float | None:
        try:
            return float(score(answer, dict(entry)))
        except Exception as error:  # whatever a third-party scorer raises: whose fault is it?
            try:
                score(oracle, dict(entry))
            except Exception:
                raise errors.DataError(
                    f"the scorer of {payload['dataset']!r} cannot deal with this entry: {type(error).__name__}: {error}"
                ) from error
            return None

    return judge(completion, reference or str(oracle or ""), payload, score_answer, marks=extract.MARKUP)


def _read_object(payload: Mapping[str, Any], field: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    value = payload.get(field, default)
    if not isinstance(value, dict):
        raise errors.DataError(
            f"{field}={value!r:.80} must be an object (the row has {', '.join(payload) or 'nothing'})"
        )
    return value


def _read_dataset(payload: Mapping[str, Any]) -> str:
    from reasoning_gym.factory import DATASETS  # seconds to import: only workers that need it pay

    name = payload.get("dataset")
    if not isinstance(name, str) or name not in DATASETS:
        raise errors.DataError(
            f"dataset={name!r:.80} is not a generator of reasoning-gym{errors.nearest(str(name), DATASETS)}"
        )
    return name


@functools.lru_cache(maxsize=128)
def _load_scorer(dataset: str, options: str) -> Callable[[str | None, dict[str, Any]], float]:
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(dataset, **json.loads(options)).score_answer
    except (AssertionError, ValueError, TypeError) as error:
        raise errors.DataError(f"dataset={dataset!r} refuses options={options}: {error}") from error
