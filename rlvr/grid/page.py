"""What a grid leaves behind: results.csv, runs.csv, verdicts.csv and grid.html, from whatever is done so far."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np

from rlvr import figures, report, statistics, writers
from rlvr.grid.comparison import Estimate, Histories, Line, Verdict, compare, judge
from rlvr.grid.ledger import STATES, Ledger, Record
from rlvr.grid.measures import History, Measure, read_history
from rlvr.grid.spec import Grid, Point, Run

_CURVES = ("reward/mean", "rollout/tokens_mean", "rollout/entropy")  # beside the grid's own measures
_BINS = 60  # of a learning curve: the values of neighbouring steps are averaged
_LENGTH = Measure("rollout/tokens_mean", "mean", 0.1)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All that is known of a grid.

    Attributes:
        records: by run name.
        histories: of the runs that are done.
        strangers: folders of runs that are not in the grid file.
        reports: names of the runs that have a report of their own.
    """

    grid: Grid
    base: str
    records: Mapping[str, Record]
    histories: Histories
    tables: Sequence[tuple[Measure, Sequence[Line]]]
    verdicts: Sequence[Verdict]
    strangers: Sequence[str]
    reports: frozenset[str]

    def counts(self) -> dict[str, int]:
        """Returns how many runs are in each state."""
        states = [record.state for record in self.records.values()]
        return {state: states.count(state) for state in STATES}


def read_outcome(grid: Grid, base: str, folder: Path) -> Outcome:
    """Reads the ledger and the metrics of all finished runs, compares the points and judges the hypotheses."""
    ledger = Ledger(folder)
    runs = grid.runs()
    records = {run.name: ledger.read(run) for run in runs}
    histories: dict[str, dict[int, History]] = {}
    for run in runs:
        if records[run.name].state == "done":
            histories.setdefault(run.point.id, {})[run.seed] = read_history(folder / "runs" / run.name)
    known = {run.name for run in runs}
    found = sorted(str(path.relative_to(folder / "runs")) for path in (folder / "runs").glob("*/seed*"))
    return Outcome(
        grid,
        base,
        records,
        histories,
        [(measure, compare(grid, measure, histories)) for measure in grid.measures],
        [judge(hypothesis, grid, histories) for hypothesis in grid.hypotheses],
        [name for name in found if name not in known],
        frozenset(name for name in known if (folder / "runs" / name / "report.html").exists()),
    )


def write_outcome(outcome: Outcome, name: str, folder: Path) -> Path:
    """Writes the three tables and the page; returns the page's path. The same runs give the same results.csv."""
    _write(folder / "results.csv", _to_csv(_result_rows(outcome)))
    _write(folder / "runs.csv", _to_csv(_run_rows(outcome)))
    _write(folder / "verdicts.csv", _to_csv(_verdict_rows(outcome)))
    environment = report.make_environment()
    environment.filters["estimate"] = _show_estimate
    page = environment.get_template("grid.html.jinja").render(
        name=name,
        facts=_facts(outcome),
        notices=_notices(outcome),
        verdicts=outcome.verdicts,
        tables=[
            (measure.title, [(line, _cost(outcome, line.point)) for line in lines]) for measure, lines in outcome.tables
        ],
        plots=[markupsafe.Markup(svg) for svg in _draw_curves(outcome)],
        seeds=outcome.grid.seeds,
        points=[(point, _point_runs(outcome, point)) for point in outcome.grid.points],
        baseline=outcome.grid.baseline,
    )
    return _write(folder / "grid.html", page)


def _write(path: Path, text: str) -> Path:
    # The process id: two drivers may write the same report.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def _to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    rows = list(rows)
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return text.getvalue()


def _columns(name: str, estimate: Estimate | None) -> dict[str, Any]:
    low, high = (estimate.interval if estimate else None) or (None, None)
    return {name: estimate.value if estimate else None, f"{name}_low": low, f"{name}_high": high}


def _result_rows(outcome: Outcome) -> Iterable[dict[str, Any]]:
    for measure, lines in outcome.tables:
        for line in lines:
            cost = _cost(outcome, line.point)
            yield {
                "point": line.point.label,
                "id": line.point.id,
                "metric": measure.metric,
                "summary": measure.summary,
                "share": measure.share,
                "seeds": len(line.scores.seeds),
                **_columns("mean", line.mean),
                **_columns("iqm", line.iqm),
                **_columns("difference", line.difference),
                "pairs": line.pairs,
                **cost,
            }


def _run_rows(outcome: Outcome) -> Iterable[dict[str, Any]]:
    for run in outcome.grid.runs():
        record = outcome.records[run.name]
        history = outcome.histories.get(run.point.id, {}).get(run.seed)
        values: dict[str, float | None] = {}
        for measure in outcome.grid.measures:
            found = np.array([*history.measure(measure).values()]) if history else np.array([])
            values[measure.title] = float(found.mean()) if found.size and np.isfinite(found).all() else None
        tokens = history.sampled_tokens() if history else np.nan
        yield {
            "point": run.point.label,
            "seed": run.seed,
            "folder": f"runs/{run.name}",
            **dataclasses.asdict(record),
            "sampled_tokens": tokens if np.isfinite(tokens) else None,
            **values,
        }


def _verdict_rows(outcome: Outcome) -> Iterable[dict[str, Any]]:
    for verdict in outcome.verdicts:
        yield {
            "hypothesis": verdict.hypothesis.text,
            "claim": verdict.hypothesis.claim(),
            "verdict": verdict.answer,
            **_columns("effect", verdict.effect),
            "seeds": verdict.seeds,
            "reason": verdict.reason,
        }


def _cost(outcome: Outcome, point: Point) -> dict[str, float | None]:
    """Returns what a point's finished runs sampled: tokens a run, and the completions' length in the last tenth."""
    histories = [*outcome.histories.get(point.id, {}).values()]
    tokens = [history.sampled_tokens() for history in histories]
    lengths = [history.measure(_LENGTH)[_LENGTH.metric] for history in histories]
    return {
        name: float(np.mean(values)) if values and np.isfinite(values).all() else None
        for name, values in (("sampled_tokens", tokens), ("length", lengths))
    }


def _facts(outcome: Outcome) -> list[tuple[str, str]]:
    counts = outcome.counts()
    seconds = sum(record.seconds for record in outcome.records.values())
    return [
        ("base config", outcome.base),
        ("points", str(len(outcome.grid.points))),
        ("seeds", ", ".join(map(str, outcome.grid.seeds))),
        ("baseline", outcome.grid.baseline),
        ("runs", ", ".join(f"{count} {state}" for state, count in counts.items() if count)),
        ("time of all runs", writers.format_duration(seconds)),
    ]


def _notices(outcome: Outcome) -> list[str]:
    """Returns what a reader must know before trusting the tables."""
    notices = []
    for run in outcome.grid.runs():
        record = outcome.records[run.name]
        if record.state != "done" and record.reason:  # those that were never begun are only counted
            notices.append(f"{run.title}: {record.state} ({record.reason})")
    for measure, lines in outcome.tables:
        for line in lines:
            if line.scores.missing:
                seeds = ", ".join(map(str, line.scores.missing))
                notices.append(f"{line.point.label}: {measure.title}: seeds {seeds} lack it and are left out")
    if len(outcome.grid.seeds) < 2:
        notices.append("one seed: there are no intervals, and every hypothesis is undecided")
    if outcome.strangers:
        notices.append(f"folders that belong to no run of the grid file: {', '.join(outcome.strangers)}")
    return notices


def _point_runs(outcome: Outcome, point: Point) -> list[tuple[int, str, str]]:
    """Returns (seed, link to its report or "", state) of each run."""
    runs = [Run(point, seed) for seed in outcome.grid.seeds]
    links = [f"runs/{run.name}/report.html" if run.name in outcome.reports else "" for run in runs]
    return [(run.seed, link, outcome.records[run.name].state) for run, link in zip(runs, links, strict=True)]


def _draw_curves(outcome: Outcome) -> Iterable[str]:
    for metric in dict.fromkeys([*(measure.metric for measure in outcome.grid.measures), *_CURVES]):
        curves = []
        for point in outcome.grid.points:
            found = [_curve(history, metric) for history in outcome.histories.get(point.id, {}).values()]
            found = [curve for curve in found if curve]
            if not found:
                continue
            steps = np.array(sorted(set().union(*found)))
            values = np.array([[curve.get(step, np.nan) for step in steps] for curve in found])
            if steps.size > _BINS:
                steps, values = _bin(steps, values)
            curves.append((point.label, steps, statistics.mean_band(values)))
        if curves:
            yield figures.draw_bands(metric, "mean over seeds", curves)


def _curve(history: History, metric: str) -> dict[float, float]:
    """Returns {step: the mean over the tasks that the metric's name stands for}."""
    found: dict[float, list[float]] = {}
    for name in history.names(metric):
        for step, value in zip(*history.series(name), strict=True):
            found.setdefault(float(step), []).append(float(value))
    return {step: sum(values) / len(values) for step, values in found.items()}


def _bin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages neighbouring steps: [n] and [runs, n] to at most `_BINS` columns; NaN where a run has none of them."""
    centres, columns = [], []
    for chosen in np.array_split(np.arange(steps.size), _BINS):
        part = values[:, chosen]
        known = np.isfinite(part)
        count = known.sum(axis=1)
        columns.append(np.where(count > 0, np.where(known, part, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan))
        centres.append(steps[chosen].mean())
    return np.array(centres), np.stack(columns, axis=1)


def _show_estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if estimate.interval is None:
        return f"{estimate.value:.4g} (no interval)"
    low, high = estimate.interval
    return f"{estimate.value:.4g} ({low:.4g} to {high:.4g})"
