"""Held-out evaluation: every task of every set once, with strict and lenient accuracy and an interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlvr import keys
from rlvr.policy.transformer import Params
from rlvr.rollout.collect import Collector, Episode
from rlvr.statistics import mean_interval
from rlvr.types import AUDIT_PREFIX, STATUSES, Task


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
        Per set: `n` (completions with a score, the base of all that follows), `unscorable` (those without: the
        verifier failed), `accuracy` (share with a full strict score), `accuracy_lenient`, `interval` (95 % of the
        accuracy), `score` (mean strict score, partial credit included); and of all completions `mean_tokens`,
        `truncated` (share), `statuses` (counts), `parts` (see `part_means`). With n = 0 the four that rest on it are
        None.
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
    scored = [e for e in episodes if e.verdict.score is not None]
    strict, lenient = correct(scored)
    statuses = [e.verdict.status for e in episodes]
    return {
        "n": len(scored),
        "unscorable": len(episodes) - len(scored),
        "accuracy": float(np.mean(strict)) if scored else None,
        "accuracy_lenient": float(np.mean(lenient)) if scored else None,
        "interval": [float(x) for x in mean_interval(strict)] if scored else None,
        "score": float(np.mean([e.verdict.score for e in scored])) if scored else None,
        "mean_tokens": float(np.mean([len(e.completion.tokens) for e in episodes])),
        "truncated": float(np.mean([e.completion.stop_reason == "length" for e in episodes])),
        "statuses": {status: statuses.count(status) for status in STATUSES if status in statuses},
        "parts": part_means(episodes),
    }


def part_means(episodes: Sequence[Episode]) -> dict[str, float]:
    """Returns the mean of each part of the verdicts, over those that have it, by "part/<name>".

    "strict" and "lenient" are left out, being the accuracies. The audit's flags keep their names, "audit/<flag>", so
    that their means are rates; "audit/any" is the share of the audited samples with any flag.
    """
    values: dict[str, list[float]] = {}
    for episode in episodes:
        parts = {name: value for name, value in episode.verdict.parts.items() if value is not None}
        flags = [value for name, value in parts.items() if name.startswith(AUDIT_PREFIX)]
        if flags:
            values.setdefault(AUDIT_PREFIX + "any", []).append(float(any(flags)))
        for name, value in parts.items():
            if name not in ("strict", "lenient"):
                values.setdefault(name if name.startswith(AUDIT_PREFIX) else f"part/{name}", []).append(value)
    return {name: float(np.mean(found)) for name, found in sorted(values.items())}


def correct(episodes: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """Returns which episodes have a full score under strict and under lenient extraction: 0 or 1, NaN if unscorable."""
    strict = [e.verdict.score for e in episodes]
    lenient = [e.verdict.parts.get("lenient", e.verdict.score) for e in episodes]
    return _full(strict), _full(lenient)


def _full(scores: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if score is None else float(score >= 1.0) for score in scores], np.float64)


def measure_pass_rates(
    collector: Collector,
    params: Params,
    tasks: Sequence[Task],
    *,
    seed: int,
    samples: int,
    at_a_time: int,
    **sampling: Any,
) -> Iterator[dict[str, Any]]:
    """Samples every task `samples` times, and yields how often it was right.

    Args:
        at_a_time: tasks sampled in one call of the engine.
        sampling: as for `Collector.sample`.

    Yields:
        Rows of `rlvr.data.pass_rates`: n counts the samples with a score.
    """
    key = keys.make_key(seed, "evaluation")
    for first in range(0, len(tasks), at_a_time):
        chosen = [tasks[i] for i in range(first, min(first + at_a_time, len(tasks)))]
        episodes = collector.collect(params, chosen, key, samples=samples, **sampling).episodes
        for task, own in zip(chosen, correct(episodes)[0].reshape(-1, samples), strict=True):
            judged = own[np.isfinite(own)]
            yield {"prompt_id": task.prompt_id, "task": task.task, "n": len(judged), "correct": int(judged.sum())}


def summarize_pass_rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the number of problems, of those without any score, the mean rate, and the shares of rates 0 and 1."""
    rates = np.array([row["correct"] / row["n"] for row in rows if row["n"]])
    told: dict[str, Any] = {"problems": len(rows), "unscorable": len(rows) - len(rates)}
    if len(rates):
        told |= {"mean": float(rates.mean()), "never": float(np.mean(rates == 0)), "always": float(np.mean(rates == 1))}
    return told


def mean_accuracy(results: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Returns the mean over sets of the accuracy, what the best checkpoint is chosen by; None if one has none."""
    accuracies = [result["accuracy"] for result in results.values()]
    return None if None in accuracies else float(np.mean(accuracies))


def flatten(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Returns the results as metrics: "eval/<set>/<name>", without those that are None.

    Several sets have the least and the mean of their accuracies besides.
    """
    names = ("accuracy", "accuracy_lenient", "mean_tokens", "n", "unscorable")
    accuracies = [result["accuracy"] for result in results.values()]
    of_all = {}
    if len(accuracies) > 1 and None not in accuracies:
        of_all = {"eval/accuracy_worst": min(accuracies), "eval/accuracy_mean": float(np.mean(accuracies))}
    return of_all | {
        f"eval/{set_name}/{name}": value
        for set_name, result in results.items()
        for name, value in ({name: result[name] for name in names} | result["parts"]).items()
        if value is not None
    }
