"""The plots of the report. A figure is drawn only if its metrics were recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from rlvr import statistics, types
from rlvr.figures import COLOURS, Rows, collect_series, draw_lines, draw_stack, render, scale_log, style_line, thin

_AUDIT = types.AUDIT_PREFIX
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
        draw_lines("Supervised loss (warm start)", "nats per token", rows, [("loss/supervised", "loss")]),
        draw_lines("Reward", "reward per sample", rows, [("reward/mean", "mean"), ("reward/std", "std")]),
        draw_lines("Reward against gold score", "mean per sample", rows, _gold_series(rows)),
        _plot_audit(rows),
        _plot_accuracy(rows, eval_counts),
        draw_lines("Completion length", "tokens", rows, _length_series(rows)),
        draw_lines("Truncated completions", "fraction of samples", rows, [("rollout/truncated", "truncated")]),
        draw_lines(
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
        draw_lines(
            "KL to the reference policy (k3)",
            "nats per token",
            rows,
            [("kl/start", "the start's"), ("kl/reference", "a synced one")],
        ),
        draw_lines("Divergence from the teacher", "nats per token", rows, [("distill/divergence", "mean")]),
        draw_lines(
            "Clipped tokens",
            "fraction of tokens",
            rows,
            [("clip/high", "clip high"), ("clip/low", "clip low")],
        ),
        draw_lines(
            "Rollout/train log-prob gap",
            "|difference|, nats",
            rows,
            [("gap/mean", "mean"), ("gap/max", "max")],
            log=True,
        ),
        draw_lines(
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
        draw_stack("Verdicts", "samples", rows, "verdict/", _STATUS_COLOURS),
        draw_lines(
            "Groups without signal",
            "fraction of groups",
            rows,
            [("groups/all_correct", "all correct"), ("groups/all_wrong", "all wrong")],
        ),
        draw_lines(
            "Dynamic sampling",
            "groups",
            rows,
            [
                ("dynamic/groups", "learned from"),
                ("dynamic/all_right", "all right"),
                ("dynamic/all_wrong", "all wrong"),
            ],
        ),
        draw_stack("Tasks that are learned from", "share of groups", rows, "curriculum/share/", {}),
        draw_lines("Accuracy of what is drawn", "fraction correct", rows, _arm_series(rows)),
        draw_lines("Policy loss", "loss", rows, [("loss/policy", "loss")]),
        draw_lines("Value loss", "loss", rows, [("loss/value", "loss")], log=True),
        draw_lines(
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
        draw_lines("Learning rate", "learning rate", rows, [("optimizer/lr", "learning rate")]),
        draw_lines("MoE router: busiest expert", "load", rows, [("moe/load_max", "load")]),
        draw_lines(
            "MoE router: experts changed since sampling",
            "fraction of tokens and layers",
            rows,
            [("moe/choices_changed", "changed")],
        ),
        draw_lines("MoE router: entropy", "nats", rows, [("moe/router_entropy", "entropy")]),
        draw_lines("MoE losses", "loss", rows, [("moe/balance_loss", "load balance"), ("moe/z_loss", "z")], log=True),
        draw_lines("Rollout speed", "tokens per second", rows, [("rollout/tokens_per_s", "sampled")]),
        draw_stack("Time of a step", "seconds", rows, "time/", {}),
    ]
    return [figure for figure in figures if figure is not None]


def _plot_accuracy(rows: Rows, eval_counts: Mapping[str, int]) -> str | None:
    lines = [("train", "accuracy/strict", "-"), (None, "accuracy/lenient", ":")]
    tasks = eval_tasks(rows)
    if not tasks and not any(name in row for row in rows for _, name, _ in lines):
        return None

    def draw(axes: Axes) -> None:
        for label, name, style in lines:
            steps, values = thin(*collect_series(rows, name))
            if steps.size:
                axes.plot(
                    steps,
                    values,
                    style,
                    label=label,
                    color="#8a8a8a",
                    linewidth=1.0,
                    **style_line(steps.size),
                )
        for index, task in enumerate(tasks):
            colour = COLOURS[index % len(COLOURS)]
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

    return render("Accuracy", "fraction correct (dotted: lenient)", rows, draw)


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
    return draw_lines(title, "fraction of samples", rows, flags)


def _plot_gradient(rows: Rows) -> str | None:
    steps, values = collect_series(rows, "optimizer/grad_norm")
    if not steps.size:
        return None
    skipped, counts = collect_series(rows, "optimizer/skipped")
    skipped = skipped[counts > 0]

    def draw(axes: Axes) -> None:
        axes.plot(*thin(steps, values), label="norm before clipping" if skipped.size else None)
        scale_log(axes, values)
        if skipped.size:
            label = f"steps with skipped updates: {skipped.size}"
            height = np.full(skipped.size, 0.02)
            transform = axes.get_xaxis_transform()
            axes.plot(skipped, height, "x", color="#d55e00", label=label, transform=transform)

    return render("Gradient norm", "global norm", rows, draw)
