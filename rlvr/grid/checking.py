"""All configs of a grid, resolved before anything runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr import errors
from rlvr.checks import resolve
from rlvr.config import ExperimentConfig, config_hash, differences, to_dict
from rlvr.grid.spec import Run

# (config file, {"a.b": value}) -> config; raises ConfigError on a field or a value that does not fit.
Parser = Callable[[str, Mapping[str, Any]], ExperimentConfig]


def resolve_runs(file: Path, base: str, runs: Sequence[Run], parse: Parser) -> dict[str, ExperimentConfig]:
    """Returns {run.name: its config, resolved}.

    Args:
        file: the grid file, for messages.
        base: the base config's file.
        parse: how overrides are applied: as the command line of a run does it.

    Raises:
        ConfigError: naming the grid file, the point and the field; also where two points are the same run.
        WeightsError: a checkpoint holds no policy.
    """
    try:
        parse(base, {})
    except errors.ConfigError as error:
        raise errors.ConfigError(f"{file}: base {base!r}: {error}") from error
    configs: dict[str, ExperimentConfig] = {}
    points: dict[str, ExperimentConfig] = {}
    seen: dict[str, Run] = {}
    for run in runs:
        try:
            if run.point.id not in points:
                points[run.point.id] = resolve(parse(base, run.overrides()))
            config = dataclasses.replace(points[run.point.id], seed=run.seed)
        except errors.ConfigError as error:
            culprit = _find_culprit(base, run, parse)
            raise errors.ConfigError(f"{file}: point {run.point.label!r}{culprit}: {error}") from error
        except errors.WeightsError as error:
            raise errors.WeightsError(f"{file}: point {run.point.label!r}: {error}") from error
        other = seen.setdefault(config_hash(config), run)
        if other is not run:
            raise errors.ConfigError(
                f"{file}: points {other.point.label!r} and {run.point.label!r} are the same run: an override that says "
                "what the base config says already?"
            )
        configs[run.name] = config
    return configs


def _find_culprit(base: str, run: Run, parse: Parser) -> str:
    """Returns ", name=value" of the first override that does not parse by itself, or "" (resolve names the field)."""
    for name, value in run.overrides().items():
        try:
            parse(base, {name: value})
        except errors.ConfigError:
            return f", {name}={value!r}"
    return ""


def check_folders(folder: Path, runs: Sequence[Run], configs: Mapping[str, ExperimentConfig]) -> None:
    """Raises WorkdirError if a run in the folder was begun under another config than it has now."""
    for run in runs:
        workdir = folder / "runs" / run.name
        if not (workdir / "config.json").exists() or not (workdir / "metrics.jsonl").exists():
            continue
        try:
            found = json.loads((workdir / "config.json").read_text())["config"]
        except (ValueError, KeyError) as error:
            raise errors.WorkdirError(f"{workdir / 'config.json'} is damaged: {error}") from error
        lines = differences(found, to_dict(configs[run.name]))
        if lines:
            raise errors.WorkdirError(
                f"{workdir} ({run.title}) was begun with another base config; choose another --workdir, or undo:\n  "
                + "\n  ".join(lines)
            )
