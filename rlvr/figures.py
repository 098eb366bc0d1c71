"""One figure as SVG text that takes its colours from the page around it. The same series give the same bytes."""

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

Rows = Sequence[Mapping[str, Any]]

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
COLOURS = ("#2f86d6", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a8a", "#b8a800")


def draw_bands(title: str, ylabel: str, curves: Sequence[tuple[str, np.ndarray, Sequence[np.ndarray]]]) -> str:
    """Draws curves with bands as one `<svg>`.

    Args:
        curves: (label, steps [n], (mean, low, high) each [n]); bounds that are NaN have no band.
    """
    dashes = ("-", "--", ":", "-.")

    def draw(axes: Axes) -> None:
        for index, (label, steps, (mean, low, high)) in enumerate(curves):
            colour, line = COLOURS[index % len(COLOURS)], dashes[index // len(COLOURS) % len(dashes)]
            axes.plot(steps, mean, line, label=label, color=colour, **style_line(steps.size))
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)

    return render(title, ylabel, (), draw)


def collect_series(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps [n] and values [n] of one metric; a value that was recorded as not finite is NaN."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    found = [(step, np.nan if value is None else value) for step, value in found]
    return np.array([step for step, _ in found], float), np.array([value for _, value in found], float)


def thin(
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


def render(title: str, ylabel: str, rows: Rows, draw: Callable[[Axes], None]) -> str:
    style: Any = {**_STYLE, "svg.hashsalt": "rlvr " + title}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        axes = figure.add_subplot()
        axes.set_prop_cycle(color=COLOURS)
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


def scale_log(axes: Axes, values: np.ndarray) -> None:
    """Makes the y axis logarithmic, with labels in plain text; without positive values it stays linear."""
    values = values[values > 0]
    if not values.size:
        return
    axes.set_yscale("log", nonpositive="mask")
    decades = np.log10(values.max() / values.min())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def style_line(size: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 2.5} if size <= 40 else {}


def draw_lines(
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
            lines.append((label, *thin(steps, values, np.nanmax if name.endswith("max") else np.nanmean)))
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        for label, steps, values in lines:
            axes.plot(steps, values, label=label if len(lines) > 1 else None, **style_line(steps.size))
        if log:
            scale_log(axes, np.concatenate([values for _, _, values in lines]))

    return render(title, ylabel, rows, draw)


def draw_stack(title: str, ylabel: str, rows: Rows, prefix: str, colours: Mapping[str, str]) -> str | None:
    """Stacks all metrics that start with `prefix`; a metric that a step lacks counts as zero there."""
    chosen = [row for row in rows if any(name.startswith(prefix) for name in row)]
    names = dict.fromkeys(name for row in chosen for name in row if name.startswith(prefix))
    parts = [[float(row.get(name) or 0.0) for row in chosen] for name in names]
    kept = [(name, part) for name, part in zip(names, parts, strict=True) if any(part)]
    if not kept:
        return None
    steps, values = thin(np.array([row["step"] for row in chosen], float), np.array([part for _, part in kept]))
    labels = [name.removeprefix(prefix).replace("_", " ") for name, _ in kept]
    palette = [
        colours.get(name.removeprefix(prefix), COLOURS[index % len(COLOURS)]) for index, (name, _) in enumerate(kept)
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

    return render(title, ylabel, rows, draw)
