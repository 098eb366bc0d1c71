"""Held-out evaluation: every task of every set once, with strict and lenient accuracy and an interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlvr import keys
from rlvr.policy.transformer import Params
from rlvr.rollout.collect import Collector, Episode
from rlvr.statistics import mean_interval
from rlvr.types import STATUSES, Task


def evaluate(
    collector: Collector,
    params: Params,
    sets: Mapping[str, Sequence[Task]],
    *,
    seed: int,
    temperature: float,
    should_stop: Callable[[], bool] = lambda: False,
    on_episodes: Callable[[str, list[Episode]], None] = lambda name, episodes: None,
) -> dict[str, dict[str, Any]]:
    """Samples every task once.

    Args:
        sets: tasks by the name they are reported under.
        temperature: 0 is greedy.
        on_episodes: called with each set's name and episodes.

    Returns:
        Per set: `n`, `accuracy` (share with a full strict score), `accuracy_lenient`, `interval` (95 % of the
        accuracy), `score` (mean strict score, partial credit included), `mean_tokens`, `truncated` (share),
        `statuses` (counts).
    """
    results = {}
    for name, tasks in sets.items():
        key = keys.make_key(seed, "evaluation")
        collected = collector.collect(params, tasks, key, samples=1, temperature=temperature, should_stop=should_stop)
        results[name] = summarize(collected.episodes)
        on_episodes(name, collected.episodes)
    return results


def summarize(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Returns the results of one set; see `evaluate`."""
    strict, lenient = correct(episodes)
    statuses = [e.verdict.status for e in episodes]
    return {
        "n": len(episodes),
        "accuracy": float(np.mean(strict)),
        "accuracy_lenient": float(np.mean(lenient)),
        "interval": [float(x) for x in mean_interval(strict)],
        "score": float(np.mean([e.verdict.score for e in episodes])),
        "mean_tokens": float(np.mean([len(e.completion.tokens) for e in episodes])),
        "truncated": float(np.mean([e.completion.stop_reason == "length" for e in episodes])),
        "statuses": {status: statuses.count(status) for status in STATUSES if status in statuses},
    }


def correct(episodes: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """Returns which episodes have a full score, 0.0 or 1.0 each, under strict and under lenient extraction."""
    strict = [e.verdict.score >= 1.0 for e in episodes]
    lenient = [e.verdict.parts.get("lenient", e.verdict.score) >= 1.0 for e in episodes]
    return np.array(strict, np.float64), np.array(lenient, np.float64)


def mean_accuracy(results: Mapping[str, Mapping[str, Any]]) -> float:
    """Returns the mean over sets of the accuracy: what the best checkpoint is chosen by."""
    return float(np.mean([result["accuracy"] for result in results.values()]))


def flatten(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Returns the results as metrics: "eval/<set>/<name>"."""
    names = ("accuracy", "accuracy_lenient", "mean_tokens", "n")
    return {f"eval/{set_name}/{name}": result[name] for set_name, result in results.items() for name in names}
