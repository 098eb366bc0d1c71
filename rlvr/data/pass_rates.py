"""How often a policy was right on each problem, as `launch.evaluate --pass_rates` measured it: a file of lines

    {"prompt_id": 123, "task": "addition", "n": 8, "correct": 3}

of samples with a score and of those with a full one. Lines of one problem add up, so that files may be joined.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlvr import errors, types
from rlvr.data import rows
from rlvr.data.tasks import LazyTasks


def read_pass_rates(path: Path) -> dict[int, float]:
    """Returns the rate of every problem that was measured, by prompt_id; NaN if none of its samples had a score.

    Raises:
        DataError: the file is missing, unreadable, or has a malformed row.
    """
    totals: dict[int, tuple[int, int]] = {}
    for number, row in rows.read_rows(path):
        values = [row.get(name) for name in ("prompt_id", "n", "correct")]
        if (
            not all(isinstance(x, int) and not isinstance(x, bool) for x in values)
            or not 0 <= row["correct"] <= row["n"]
        ):
            raise errors.DataError(
                f"{path}, line {number}: prompt_id, n and correct must be integers with 0 <= correct <= n, not "
                f"{rows.shorten(row)}"
            )
        n, correct = totals.get(row["prompt_id"], (0, 0))
        totals[row["prompt_id"]] = n + row["n"], correct + row["correct"]
    return {prompt_id: correct / n if n else math.nan for prompt_id, (n, correct) in totals.items()}


def find_rate(task: types.Task, rates: Mapping[int, float]) -> float:
    """Returns the rate of a problem. Raises DataError naming it if there is none."""
    rate = rates.get(task.prompt_id)
    if rate is None or math.isnan(rate):
        why = (
            "measure it with launch.evaluate --pass_rates"
            if rate is None
            else "it was measured, but none of its samples had a score (n is 0): mend its verifier or remove it"
        )
        raise errors.DataError(
            f"data.pass_rates knows no rate of the training task of {task.task!r} that begins {task.prompt[:60]!r} "
            f"(prompt_id {task.prompt_id}): {why}"
        )
    return rate


def distinct_tasks(sources: Mapping[str, Sequence[types.Task]]) -> dict[str, LazyTasks]:
    """Returns the sets without problems that came before, there or in another set: measured apart, they would get the
    same samples again, which are no further evidence."""
    seen: set[int] = set()
    distinct = {}
    for label, source in sources.items():
        kept = []
        for i, task in enumerate(source):
            if task.prompt_id not in seen:
                seen.add(task.prompt_id)
                kept.append(i)
        distinct[label] = _choose(source, kept)
    return distinct


def _choose(source: Sequence[types.Task], kept: Sequence[int]) -> LazyTasks:
    return LazyTasks(len(kept), lambda i: source[kept[i]])


def select_tasks(
    source: Sequence[types.Task], rates: Mapping[int, float], low: float, high: float, label: str
) -> LazyTasks:
    """Returns the problems whose rate is in [low, high], in their order.

    Raises:
        DataError: a problem has no rate, or none is left.
    """
    kept = [i for i in range(len(source)) if low <= find_rate(source[i], rates) <= high]
    if not kept:
        raise errors.DataError(
            f"no training task of {label!r} has a pass rate between data.pass_rate_low={low} and "
            f"data.pass_rate_high={high}"
        )
    return _choose(source, kept)
