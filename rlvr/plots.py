"""The plots of the report, as SVG text that takes its colours from the page around it.

A figure is drawn only if its metrics were recorded. The same metrics give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from rlvr import statistics, types

Rows = Sequence[Mapping[str, Any]]

_AUDIT = types.AUDIT_PREFIX
_POINTS = 400  # longest line drawn; longer series are averaged in equal bins, to bound the size of the page
# matplotlib knows no CSS: it draws text and grid in two colours that nothing else uses, replaced afterwards.
_TEXT, _GRID = "#010203", "#040506"
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a task's name may hold a dollar sign
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.which": "major",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.titlecolor": _TEXT,
    "axes.edgecolor": _GRID,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
}
# After Okabe and Ito's palette, with a lighter blue: readable to the colour-blind, on white and on black.
_COLOURS = ("#2f86d6", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a8a", "#b8a800")
_STATUS_COLOURS = dict(
    zip(types.STATUSES, ("#009e73", "#d55e00", "#e69f00", "#cc79a7", "#56b4e9", "#8a8a8a"), strict=True)
)


def draw_plots(rows: Rows, eval_counts: Mapping[str, int]) -> list[str]:
    """Returns one `<svg>` for each plot that has data.

    Args:
        rows: the lines of metrics.jsonl in order of their steps.
        eval_counts: held-out problems per task, for the interval bands; a task without one gets no band.
    """
    if not rows:
        return []
    figures: list[str | None] = [
        _plot("Supervised loss (warm start)", "nats per token", rows, [("loss/supervised", "loss")]),
        _plot("Reward", "reward per sample", rows, [("reward/mean", "mean"), ("reward/std", "std")]),
        _plot("Reward against gold score", "mean per sample", rows, _gold_series(rows)),
        _plot_audit(rows),
        _plot_accuracy(rows, eval_counts),
        _plot("Completion length", "tokens", rows, _length_series(rows)),
        _plot("Truncated completions", "fraction of samples", rows, [("rollout/truncated", "truncated")]),
        _plot(
            "Entropy of the policy",
            "nats per token",
            rows,
            [
                ("rollout/surprisal", "all samples, estimated"),
                ("rollout/entropy", "sequences learned from"),
                ("rollout/entropy_positive", "advantage above 0"),
                ("rollout/entropy_negative", "advantage below 0"),
            ],
        ),
        _plot(
            "KL to the reference policy (k3)",
            "nats per token",
            rows,
            [("kl/start", "the start's"), ("kl/reference", "a synced one")],
        ),
        _plot("Divergence from the teacher", "nats per token", rows, [("distill/divergence", "mean")]),
        _plot(
            "Clipped tokens",
            "fraction of tokens",
            rows,
            [("clip/high", "clip high"), ("clip/low", "clip low")],
        ),
        _plot(
            "Rollout/train log-prob gap",
            "|difference|, nats",
            rows,
            [("gap/mean", "mean"), ("gap/max", "max")],
            log=True,
        ),
        _plot(
            "Weights of the sampled tokens",
            "policy / rollout",
            rows,
            [
                ("gap/weight_max", "largest"),
                ("gap/weight_mean", "mean"),
                ("gap/ess", "effective share"),
                ("gap/weight_min", "smallest"),
            ],
            log=True,
        ),
        _plot_stack("Verdicts", "samples", rows, "verdict/", _STATUS_COLOURS),
        _plot(
            "Groups without signal",
            "fraction of groups",
            rows,
            [("groups/all_correct", "all correct"), ("groups/all_wrong", "all wrong")],
        ),
        _plot(
            "Dynamic sampling",
            "groups",
            rows,
            [
                ("dynamic/groups", "learned from"),
                ("dynamic/all_right", "all right"),
                ("dynamic/all_wrong", "all wrong"),
            ],
        ),
        _plot_stack("Tasks that are learned from", "share of groups", rows, "curriculum/share/", {}),
        _plot("Accuracy of what is drawn", "fraction correct", rows, _arm_series(rows)),
        _plot("Policy loss", "loss", rows, [("loss/policy", "loss")]),
        _plot("Value loss", "loss", rows, [("loss/value", "loss")], log=True),
        _plot(
            "Values of the critic",
            "mean over tokens",
            rows,
            [
                ("value/mean", "values"),
                ("value/returns", "returns"),
                ("value/explained_variance", "explained variance"),
            ],
        ),
        _plot_gradient(rows),
        _plot("Learning rate", "learning rate", rows, [("optimizer/lr", "learning rate")]),
        _plot("MoE router: busiest expert", "load", rows, [("moe/load_max", "load")]),
        _plot(
            "MoE router: experts changed since sampling",
            "fraction of tokens and layers",
            rows,
            [("moe/choices_changed", "changed")],
        ),
        _plot("MoE router: entropy", "nats", rows, [("moe/router_entropy", "entropy")]),
        _plot("MoE losses", "loss", rows, [("moe/balance_loss", "load balance"), ("moe/z_loss", "z")], log=True),
        _plot("Rollout speed", "tokens per second", rows, [("rollout/tokens_per_s", "sampled")]),
        _plot_stack("Time of a step", "seconds", rows, "time/", {}),
    ]
    return [figure for figure in figures if figure is not None]


def draw_bands(title: str, ylabel: str, curves: Sequence[tuple[str, np.ndarray, Sequence[np.ndarray]]]) -> str:
    """Draws curves with bands as one `<svg>`.

    Args:
        curves: (label, steps [n], (mean, low, high) each [n]); bounds that are NaN have no band.
    """
    dashes = ("-", "--", ":", "-.")

    def draw(axes: Axes) -> None:
        for index, (label, steps, (mean, low, high)) in enumerate(curves):
            colour, line = _COLOURS[index % len(_COLOURS)], dashes[index // len(_COLOURS) % len(dashes)]
            axes.plot(steps, mean, line, label=label, color=colour, **_style_line(steps.size))
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)

    return _render(title, ylabel, (), draw)


def collect_series(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps [n] and values [n] of one metric; a value that was recorded as not finite is NaN."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    found = [(step, np.nan if value is None else value) for step, value in found]
    return np.array([step for step, _ in found], float), np.array([value for _, value in found], float)


def _thin(
    steps: np.ndarray, values: np.ndarray, reduce: Callable[..., np.ndarray] = np.nanmean
) -> tuple[np.ndarray, np.ndarray]:
    """Reduces [..., n] values to at most `_POINTS` bins of neighbouring steps."""
    if steps.size <= _POINTS:
        return steps, values
    bins = np.array_split(np.arange(steps.size), _POINTS)
    columns = []
    for chosen in bins:
        part = values[..., chosen]
        # A bin without one finite value stays empty; numpy would warn of it.
        known = np.isfinite(part).any(axis=-1)
        filled = np.where(known[..., None], part, 0.0)
        columns.append(np.where(known, reduce(filled, axis=-1), np.nan))
    return np.array([steps[chosen].mean() for chosen in bins]), np.stack(columns, axis=-1)


def _render(title: str, ylabel: str, rows: Rows, draw: Callable[[Axes], None]) -> str:
    style: Any = {**_STYLE, "svg.hashsalt": "rlvr " + title}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        axes = figure.add_subplot()
        axes.set_prop_cycle(color=_COLOURS)
        draw(axes)
        marked = _mark_warm_start(axes, rows)
        axes.set_title(title, pad=15 if marked else 6)
        axes.set_ylabel(ylabel)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            columns = max(1, min(4, 78 // (max(map(len, labels)) + 7)))
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=1.2)
        buffer = io.StringIO()
        empty = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    return _inline(buffer.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """Makes a stand-alone SVG part of a page: no prologue, no repeated ids, the page's own colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace(_TEXT, "currentColor").replace(_GRID, "var(--grid)")
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def _mark_warm_start(axes: Axes, rows: Rows) -> bool:
    """Draws the line between warm start and RL, and returns True, where the plot shows both."""
    warm = [row["step"] for row in rows if row.get("phase") == "warm_start"]
    low, high = axes.dataLim.intervalx
    if not warm or not low <= max(warm) < high:
        return False
    border = max(warm) + 0.5
    axes.axvline(border, color=_TEXT, linewidth=0.8, linestyle=(0, (3, 3)))
    for text, side, shift in (("warm start", "right", -3), ("RL", "left", 3)):
        axes.annotate(
            text,
            (border, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(shift, 2),
            textcoords="offset points",
            ha=side,
            va="bottom",
            fontsize=7.5,
        )
    return True


def _scale_log(axes: Axes, values: np.ndarray) -> None:
    """Makes the y axis logarithmic, with labels in plain text; without positive values it stays linear."""
    values = values[values > 0]
    if not values.size:
        return
    axes.set_yscale("log", nonpositive="mask")
    decades = np.log10(values.max() / values.min())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _style_line(size: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 2.5} if size <= 40 else {}


def _plot(
    title: str,
    ylabel: str,
    rows: Rows,
    series: Iterable[tuple[str, str]],
    *,
    log: bool = False,
) -> str | None:
    """Draws (metric, label) lines, or returns None if not one finite value was recorded."""
    lines = []
    for name, label in series:
        steps, values = collect_series(rows, name)
        if np.isfinite(values).any():
            # The mean of maxima is nobody's maximum.
            lines.append((label, *_thin(steps, values, np.nanmax if name.endswith("max") else np.nanmean)))
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        for label, steps, values in lines:
            axes.plot(steps, values, label=label if len(lines) > 1 else None, **_style_line(steps.size))
        if log:
            _scale_log(axes, np.concatenate([values for _, _, values in lines]))

    return _render(title, ylabel, rows, draw)


def _plot_accuracy(rows: Rows, eval_counts: Mapping[str, int]) -> str | None:
    lines = [("train", "accuracy/strict", "-"), (None, "accuracy/lenient", ":")]
    tasks = eval_tasks(rows)
    if not tasks and not any(name in row for row in rows for _, name, _ in lines):
        return None

    def draw(axes: Axes) -> None:
        for label, name, style in lines:
            steps, values = _thin(*collect_series(rows, name))
            if steps.size:
                axes.plot(
                    steps,
                    values,
                    style,
                    label=label,
                    color="#8a8a8a",
                    linewidth=1.0,
                    **_style_line(steps.size),
                )
        for index, task in enumerate(tasks):
            colour = _COLOURS[index % len(_COLOURS)]
            steps, values = collect_series(rows, f"eval/{task}/accuracy")
            axes.plot(steps, values, "-", label=f"held-out {task}", color=colour, marker="o", markersize=3)
            if task in eval_counts:
                count = eval_counts[task]
                bounds = [
                    statistics.wilson_interval(value * count, count) if 0 <= value <= 1 else (np.nan, np.nan)
                    for value in values
                ]
                low, high = np.array(bounds).T
                axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
            steps, values = collect_series(rows, f"eval/{task}/accuracy_lenient")
            if steps.size:
                axes.plot(steps, values, ":", color=colour)
        axes.set_ylim(-0.03, 1.03)

    return _render("Accuracy", "fraction correct (dotted: lenient)", rows, draw)


def eval_tasks(rows: Rows) -> list[str]:
    """Returns the names of the tasks that were evaluated, in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = (re.fullmatch(r"eval/(.+)/accuracy", name) for name in names)
    return [match[1] for match in found if match]


def _length_series(rows: Rows) -> list[tuple[str, str]]:
    evaluated = [(f"eval/{task}/mean_tokens", f"held-out {task}") for task in eval_tasks(rows)]
    return [("rollout/tokens_mean", "train"), *evaluated]


def _arm_series(rows: Rows) -> list[tuple[str, str]]:
    """Returns the accuracies of the arms of a curriculum."""
    prefix = "curriculum/accuracy/"
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(prefix))
    return [(name, name.removeprefix(prefix)) for name in names]


def _gold_series(rows: Rows) -> list[tuple[str, str]]:
    """Returns the reward beside what held-out judgements say of the same samples; nothing where there are none."""
    if not any("part/gold" in row for row in rows):
        return []
    evaluated = [(f"eval/{task}/part/gold", f"gold, held-out {task}") for task in eval_tasks(rows)]
    return [("reward/mean", "reward"), ("part/gold", "gold score"), *evaluated]


def _plot_audit(rows: Rows) -> str | None:
    """Draws the rates of the flags that were ever raised, and of "any" where there are several."""
    raised = sorted({name for row in rows for name, rate in row.items() if name.startswith(_AUDIT) and rate})
    flags = [(name, name.removeprefix(_AUDIT).replace("_", " ")) for name in raised]
    if len(flags) == 2:  # one flag, and "any", which is the same
        flags = [flag for flag in flags if flag[1] != "any"]
    title = f"Hacking audit: {flags[0][1]}" if len(flags) == 1 else "Hacking audit"
    return _plot(title, "fraction of samples", rows, flags)


def _plot_gradient(rows: Rows) -> str | None:
    steps, values = collect_series(rows, "optimizer/grad_norm")
    if not steps.size:
        return None
    skipped, counts = collect_series(rows, "optimizer/skipped")
    skipped = skipped[counts > 0]

    def draw(axes: Axes) -> None:
        axes.plot(*_thin(steps, values), label="norm before clipping" if skipped.size else None)
        _scale_log(axes, values)
        if skipped.size:
            label = f"steps with skipped updates: {skipped.size}"
            height = np.full(skipped.size, 0.02)
            transform = axes.get_xaxis_transform()
            axes.plot(skipped, height, "x", color="#d55e00", label=label, transform=transform)

    return _render("Gradient norm", "global norm", rows, draw)


def _plot_stack(title: str, ylabel: str, rows: Rows, prefix: str, colours: Mapping[str, str]) -> str | None:
    """Stacks all metrics that start with `prefix`; a metric that a step lacks counts as zero there."""
    chosen = [row for row in rows if any(name.startswith(prefix) for name in row)]
    names = dict.fromkeys(name for row in chosen for name in row if name.startswith(prefix))
    parts = [[float(row.get(name) or 0.0) for row in chosen] for name in names]
    kept = [(name, part) for name, part in zip(names, parts, strict=True) if any(part)]
    if not kept:
        return None
    steps, values = _thin(np.array([row["step"] for row in chosen], float), np.array([part for _, part in kept]))
    labels = [name.removeprefix(prefix).replace("_", " ") for name, _ in kept]
    palette = [
        colours.get(name.removeprefix(prefix), _COLOURS[index % len(_COLOURS)]) for index, (name, _) in enumerate(kept)
    ]
    totals = values.sum(axis=0)
    if steps.size == 1:  # an area needs a width
        steps, values = steps[0] + np.array([-0.5, 0.5]), np.repeat(values, 2, axis=1)
    # One slow step (the first compiles) must not flatten all the others.
    ceiling = 1.15 * float(np.quantile(totals, 0.97))
    cut = totals > max(ceiling, 1e-12)

    def draw(axes: Axes) -> None:
        axes.stackplot(steps, values, labels=labels, colors=palette, step="mid", linewidth=0)
        axes.margins(x=0)
        if cut.any() and ceiling > 0:
            axes.set_ylim(0, ceiling)
            note = f"{int(cut.sum())} above the scale, up to {totals.max():.3g}"
            axes.text(0.99, 0.97, note, ha="right", va="top", fontsize=7.5, transform=axes.transAxes)

    return _render(title, ylabel, rows, draw)
