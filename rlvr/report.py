"""report.html: one self-contained page about a run, made from the files of its workdir."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from rlvr import errors, plots, writers

_LONGEST = 12_000  # characters of one prompt or completion; the middle of a longer one is left out
_MARK = markupsafe.Markup('<span class="mark">{}</span>')


def write_report(workdir: Path) -> Path:
    """Writes `report.html` into a run's workdir and returns its path.

    Reads config.json, metrics.jsonl, samples.jsonl and result.json. Only the first must exist: the report of
    a run that is not finished, or that recorded no samples, says so. The page needs no network and runs no
    script; the same files give the same bytes.

    Raises:
        WorkdirError: the folder holds no run, or one of the files is damaged.
    """
    config = _read_json(workdir / "config.json")
    if config is None:
        raise errors.WorkdirError(f"{workdir} is not the workdir of a run: it has no config.json")
    result = _read_json(workdir / "result.json")
    rows = list(writers.read_rows(workdir / "metrics.jsonl"))
    page = (
        make_environment()
        .get_template("report.html.jinja")
        .render(
            name=workdir.resolve().name,
            facts=_facts(config, result, rows),
            notices=_notices(result, rows),
            table=_eval_table(result, rows),
            plots=[markupsafe.Markup(svg) for svg in plots.draw_plots(rows, _eval_counts(result))],
            sample_steps=choose_samples(writers.read_rows(workdir / "samples.jsonl")),
            config=json.dumps(config, indent=2, sort_keys=True),
        )
    )
    path = workdir / "report.html"
    temporary = path.with_suffix(".html.tmp")
    temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)
    return path


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise errors.WorkdirError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise errors.WorkdirError(f"{path} is not a JSON object")
    return content


def make_environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # completions are whatever a policy says: nothing of them may reach the page as HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = show_text
    environment.filters["number"] = _show_number
    return environment


def _facts(
    config: Mapping[str, Any], result: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Returns the (label, value) pairs of the page's head."""
    known = result or {}
    warm = sum(row.get("phase") == "warm_start" for row in rows)
    steps = str(known.get("steps", len(rows)))
    if warm:
        steps += f" ({warm} of them warm start)"
    facts = [
        ("state", "finished" if result else "not finished: no result.json"),
        ("steps", steps),
    ]
    seconds = known.get("wall_s", rows[-1].get("wall_s") if rows else None)
    if seconds is not None:
        facts.append(("wall time", writers.format_duration(seconds)))
    for key in ("config_hash", "params_sha256", "rollout_sha256"):
        value = known.get(key, config.get(key))
        if value is not None:
            facts.append((key, str(value)))
    return facts


def _notices(result: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what a reader must know before trusting the plots."""
    notices = []
    if not rows:
        notices.append("no metrics recorded")
    else:
        missing = rows[-1]["step"] - rows[0]["step"] + 1 - len(rows)
        if missing > 0:
            notices.append(f"steps without metrics: {missing} (lost, for example on a full disk)")
    broken: dict[str, int] = {}
    for row in rows:
        for name in row.get("nonfinite", {}):
            broken[name] = broken.get(name, 0) + 1
    if broken:
        listed = ", ".join(f"{name} at {count} of {len(rows)} steps" for name, count in sorted(broken.items()))
        notices.append(f"values that were not finite: {listed}")
    skipped = sum(row.get("optimizer/skipped") or 0 for row in rows)
    if skipped:
        notices.append(f"updates skipped because of non-finite gradients: {skipped:g}")
    return notices


def _eval_counts(result: Mapping[str, Any] | None) -> dict[str, int]:
    return {task: numbers["n"] for task, numbers in (result or {}).get("eval", {}).items() if numbers.get("n")}


def _eval_table(result: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns the captions and lines of the table start -> end, or None if nothing was evaluated.

    A finished run's numbers come from result.json; of another, its first and latest evaluation are shown.
    """
    if result and result.get("eval"):
        start, end = result.get("eval_start") or {}, result["eval"]
        captions = ("start", "end")
    else:
        evaluated = [row for row in rows if plots.eval_tasks([row])]
        if not evaluated:
            return None
        first, last = evaluated[0], evaluated[-1]
        captions = (f"step {first['step']}", f"step {last['step']}")
        start, end = _eval_of_row(first), _eval_of_row(last)
    lines = []
    for task in dict.fromkeys((*start, *end)):
        before, after = start.get(task, {}), end.get(task, {})
        lines.append({"task": task, "n": after.get("n", before.get("n")), "before": before, "after": after})
    return {"captions": captions, "lines": lines}


def _eval_of_row(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    fields = ("accuracy", "accuracy_lenient", "mean_tokens")
    return {
        task: {field: row[f"eval/{task}/{field}"] for field in fields if f"eval/{task}/{field}" in row}
        for task in plots.eval_tasks([row])
    }


def choose_samples(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Picks the rollouts to show: of the first, middle and last recorded step the best and the worst.

    Best and worst go by score, then by advantage, then by order. Of the rows only two a step are held.

    Returns:
        [{"step", "count", "score" (mean of those that have one, or None), "rollouts": [(label, row)]}]; empty if
        there are no rows.
    """
    steps: dict[int, dict[str, Any]] = {}
    for row in rows:
        seen = steps.setdefault(row["step"], {"count": 0, "scores": [], "best": row, "worst": row})
        seen["count"] += 1
        seen["scores"] += [] if row.get("score") is None else [row["score"]]
        if _rank(row) > _rank(seen["best"]):
            seen["best"] = row
        # <=: among equals the last is the worst, so that two different rollouts are shown.
        if _rank(row) <= _rank(seen["worst"]):
            seen["worst"] = row
    order = sorted(steps)
    chosen = dict.fromkeys(order[index] for index in (0, len(order) // 2, len(order) - 1)) if order else {}
    shown = []
    for step in chosen:
        seen = steps[step]
        rollouts = [("best", seen["best"]), ("worst", seen["worst"])]
        if seen["count"] == 1:
            rollouts = [("only one recorded", seen["best"])]
        mean = sum(seen["scores"]) / len(seen["scores"]) if seen["scores"] else None
        shown.append({"step": step, "count": seen["count"], "score": mean, "rollouts": rollouts})
    return shown


def _rank(row: Mapping[str, Any]) -> tuple[float, float]:
    lowest = float("-inf")  # the score of an unscorable rollout is null, and ranks lowest
    score, advantage = row.get("score"), row.get("advantage")
    return (lowest if score is None else score, lowest if advantage is None else advantage)


def _show_number(value: Any, places: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:.{places}f}"


def show_text(text: str) -> markupsafe.Markup:
    """Returns sampled text as safe HTML in which every special character can be seen.

    Newlines and tabs keep their effect and get a mark; spaces at either end, before a newline or in a row
    become dots; control, format (a change of writing direction), private and broken characters become their
    code. The middle of a text over `_LONGEST` characters is left out.
    """
    left_out = len(text) - _LONGEST
    if left_out > 0:
        half = _LONGEST // 2
        note = markupsafe.Markup('<span class="note">[{} characters left out]</span>').format(left_out)
        return show_text(text[:half]) + "\n" + note + "\n" + show_text(text[-half:])
    if not text:
        return markupsafe.Markup('<span class="note">(empty)</span>')
    shown = markupsafe.Markup("")
    for index, piece in enumerate(re.split(r"( {2,}|\A | (?=\n|\Z)|\n|\t)", text)):
        if index % 2:
            mark = piece.replace(" ", "·").replace("\n", "↵").replace("\t", "→")
            shown += _MARK.format(mark) + piece.strip(" ")
        else:
            for printable, run in itertools.groupby(piece, str.isprintable):
                part = "".join(run)
                shown += part if printable else _MARK.format("".join(f"\\u{{{ord(char):x}}}" for char in part))
    return shown
