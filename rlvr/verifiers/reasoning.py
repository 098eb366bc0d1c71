"""The scorers that come with the generators of reasoning-gym."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from rlvr import types
from rlvr.verifiers.judge import judge


def warm_up() -> None:
    """Imports reasoning-gym, which takes seconds."""
    import reasoning_gym  # noqa: F401


def verify_reasoning_gym(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Scores the answer as the generator `payload["dataset"]` does for `payload["entry"]`.

    The score is whatever the generator returns: many give partial credit. Only 1 or more counts as correct.

    Raises:
        ValueError: the payload lacks "dataset" or "entry", or reasoning-gym has no such generator.
    """
    missing = [key for key in ("dataset", "entry") if key not in payload]
    if missing:
        raise ValueError(f"the payload lacks {', '.join(missing)} (it has {', '.join(payload) or 'nothing'})")
    # The options go to the scorer as well: some generators score by their own configuration.
    score = _load_scorer(payload["dataset"], json.dumps(payload.get("options", {}), sort_keys=True))
    entry = dict(payload["entry"])
    return judge(completion, reference, payload, lambda answer: float(score(answer, entry)))


@functools.lru_cache(maxsize=128)
def _load_scorer(dataset: str, options: str) -> Callable[[str, dict[str, Any]], float]:
    import reasoning_gym  # seconds to import: only workers that need it pay

    return reasoning_gym.create_dataset(dataset, **json.loads(options)).score_answer
