"""One number of a run, from the lines of its metrics.jsonl."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlvr import errors, writers


def final(steps: np.ndarray, values: np.ndarray) -> float:
    """The last value."""
    return float(values[-1]) if values.size else np.nan


def mean(steps: np.ndarray, values: np.ndarray) -> float:
    """The mean of the values."""
    return float(values.mean()) if values.size else np.nan


def slope(steps: np.ndarray, values: np.ndarray) -> float:
    """The least-squares slope, per step."""
    if values.size < 2:
        return np.nan
    centred = steps - steps.mean()
    return float(centred @ (values - values.mean()) / (centred @ centred))


# Each takes steps [n] and finite values [n], and gives NaN where they are too few.
SUMMARIES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"final": final, "mean": mean, "slope": slope}


@dataclasses.dataclass(frozen=True)
class Measure:
    """A metric and how a run's values of it become one.

    Attributes:
        metric: name in metrics.jsonl; one "*" stands for the name of every task set ("eval/*/accuracy").
        summary: key of `SUMMARIES`.
        share: the last share of the RL steps, in (0, 1], from which values are taken.
    """

    metric: str
    summary: str = "final"
    share: float = 1.0

    @property
    def title(self) -> str:
        """What people read."""
        window = "" if self.share == 1.0 or self.summary == "final" else f" over the last {self.share:.3g} of the steps"
        return f"{self.metric} ({self.summary}{window})"

    def validate(self, field: str) -> None:
        """Raises ConfigError naming what cannot work."""
        errors.check_choice(f"{field}.summary", self.summary, SUMMARIES)
        if not 0 < self.share <= 1:
            raise errors.ConfigError(f"{field}.share={self.share} must be above 0 and at most 1")
        if self.metric.count("*") > 1:
            raise errors.ConfigError(f"{field}.metric={self.metric!r} has more than one '*'")


@dataclasses.dataclass(frozen=True)
class History:
    """The RL steps of a run.

    Attributes:
        rows: lines of metrics.jsonl with "step" counted from the first RL step.
    """

    rows: Sequence[Mapping[str, Any]]

    def series(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns steps [n] and values [n] of a metric, those left out that were not finite."""
        found = [(row["step"], row[metric]) for row in self.rows if row.get(metric) is not None]
        return np.array([step for step, _ in found], float), np.array([value for _, value in found], float)

    def names(self, metric: str) -> list[str]:
        """Returns the recorded metrics that a name with "*" stands for, sorted; without "*" that name alone."""
        if "*" not in metric:
            return [metric]
        pattern = re.compile("(.+)".join(map(re.escape, metric.split("*"))))
        return sorted({name for row in self.rows for name in row if pattern.fullmatch(name)})

    def measure(self, measure: Measure) -> dict[str, float]:
        """Returns {metric: value}, one for each that the measure's name stands for; NaN where values are too few."""
        steps_in_all = self.rows[-1]["step"] + 1 if self.rows else 0
        first = steps_in_all - math.ceil(round(measure.share * steps_in_all, 6))
        values = {}
        for name in self.names(measure.metric):
            steps, series = self.series(name)
            kept = steps >= first
            values[name] = SUMMARIES[measure.summary](steps[kept], series[kept])
        return values

    def sampled_tokens(self) -> float:
        """Returns how many tokens the RL steps sampled for training, or NaN if that was not recorded."""
        return sum(row.get("rollout/tokens", np.nan) for row in self.rows) if self.rows else np.nan


def read_history(workdir: Path) -> History:
    """Reads the RL steps of a run's workdir; none if it has no metrics yet.

    Raises:
        WorkdirError: metrics.jsonl is damaged.
    """
    rows = [row for row in writers.read_rows(workdir / "metrics.jsonl") if row.get("phase") == "rl"]
    first = rows[0]["step"] if rows else 0
    return History([{**row, "step": row["step"] - first} for row in rows])
