"""What a grid file says: the points, the seeds, what is compared, and what is expected of it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from rlvr import errors
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.presets import preset
from rlvr.grid.measures import Measure

DIRECTIONS = ("above", "below", "near")
_SLUG_LENGTH = 60


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of the grid.

    Attributes:
        overrides: {"objective.clip_high": 0.28}: fields of the base config, as after `--config.`, with their values
            (bool, int, float, str or a tuple of those).
        label: for people, and for the grid file to name the point by; by default made of the overrides. Changing it
            changes nothing of the runs.
    """

    overrides: Mapping[str, Any]
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", _describe(self.overrides) or "base")

    @property
    def id(self) -> str:
        """Its folder's name: readable, and unique to the overrides whatever their order."""
        text = json.dumps(dict(self.overrides), sort_keys=True)
        slug = re.sub(r"[^A-Za-z0-9._=-]+", "_", _describe(dict(sorted(self.overrides.items()))) or "base")
        return f"{slug[:_SLUG_LENGTH].strip('_.')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class Run(NamedTuple):
    """One point with one seed: an ordinary run of `launch.train`."""

    point: Point
    seed: int

    @property
    def name(self) -> str:
        """Its folder in `runs/` and in `ledger/`."""
        return f"{self.point.id}/seed{self.seed}"

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.point.label}, seed {self.seed}"

    def overrides(self) -> dict[str, Any]:
        """All that it changes in the base config."""
        return {**self.point.overrides, "seed": self.seed}


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A sentence, and what must hold for it.

    The effect is the measure at `point` less that at `other` (by seed), or less `threshold`. The claim is that its mean
    over seeds is more than `smallest_effect` in the given direction, or, for "near", at most that in both.

    Attributes:
        text: the sentence.
        measure: what is compared.
        point: label of a point.
        direction: "above", "below" or "near".
        other: label of the point compared with.
        threshold: the number compared with; exactly one of `other` and `threshold` is given.
        smallest_effect: what counts as an effect, not negative.
    """

    text: str
    measure: Measure
    point: str
    direction: str
    other: str = ""
    threshold: float | None = None
    smallest_effect: float = 0.0

    def claim(self) -> str:
        """The statement that is checked."""
        how_far = "at most" if self.direction == "near" else "more than"
        margin = f" by {how_far} {self.smallest_effect:g}" if self.smallest_effect else ""
        reference = self.other if self.threshold is None else f"{self.threshold:g}"
        return f"{self.measure.title}: {self.point} {self.direction} {reference}{margin}"


@dataclasses.dataclass(frozen=True)
class Grid:
    """Many runs of one base config.

    Attributes:
        base: a config file's path, as for `--config`, or the `get_config` of the grid file itself.
        points: made by hand or by `product`, `zipped` and `cross`; lists are joined with +.
        seeds: of every point.
        baseline: label of the point that the others are compared with.
        measures: what is compared.
        hypotheses: what is expected.
    """

    base: str | Callable[[], Any]
    points: Sequence[Point]
    seeds: Sequence[int]
    baseline: str
    measures: Sequence[Measure]
    hypotheses: Sequence[Hypothesis] = ()

    def runs(self) -> list[Run]:
        """All runs in the order of their work: every point with the first seed, then with the second."""
        return [Run(point, seed) for seed in self.seeds for point in self.points]

    def validate(self) -> None:
        """Raises ConfigError on the first thing that cannot work, the configs apart (`rlvr.grid.checking`)."""
        for name in ("points", "seeds", "measures"):
            if not getattr(self, name):
                raise errors.ConfigError(f"{name} is empty: a grid needs at least one")
        for point in self.points:
            _check_point(point)
        labels = [point.label for point in self.points]
        _check_unique("points", labels, "label")
        _check_unique("points", [point.id for point in self.points], "overrides (as in the folder's name)")
        _check_unique("seeds", list(self.seeds), "value")
        for seed in self.seeds:
            if not isinstance(seed, int) or isinstance(seed, bool):
                raise errors.ConfigError(f"seeds: {seed!r} is not an integer")
            errors.check_between("seeds", seed, 0, 2**32 - 1)
        errors.check_choice("baseline", self.baseline, labels)
        _check_unique("measures", list(self.measures), "content")
        for index, measure in enumerate(self.measures):
            measure.validate(f"measures[{index}]")
        for index, hypothesis in enumerate(self.hypotheses):
            _check_hypothesis(f"hypotheses[{index}]", hypothesis, labels)


def product(fields: Mapping[str, Iterable[Any]]) -> list[Point]:
    """Returns a point for every combination of the fields' values; the last field varies fastest."""
    names, values = list(fields), [list(values) for values in fields.values()]
    return [Point(dict(zip(names, chosen, strict=True))) for chosen in itertools.product(*values)]


def zipped(fields: Mapping[str, Iterable[Any]]) -> list[Point]:
    """Returns a point for the first values of all fields, one for the second ones, and so on.

    Raises:
        ConfigError: the fields have not equally many values.
    """
    names, values = list(fields), [list(values) for values in fields.values()]
    if len({len(column) for column in values}) > 1:
        counts = ", ".join(f"{name}: {len(column)}" for name, column in zip(names, values, strict=True))
        raise errors.ConfigError(f"zipped fields must have equally many values ({counts})")
    return [Point(dict(zip(names, chosen, strict=True))) for chosen in zip(*values, strict=True)]


def cross(*lists: Sequence[Point]) -> list[Point]:
    """Returns every combination of a point from each list, with the overrides of all and their labels joined.

    Raises:
        ConfigError: two of the lists change the same field.
    """
    combined = []
    for chosen in itertools.product(*lists):
        overrides: dict[str, Any] = {}
        for point in chosen:
            twice = overrides.keys() & point.overrides.keys()
            if twice:
                raise errors.ConfigError(f"crossed points change {min(twice)!r} twice: {', '.join(map(str, chosen))}")
            overrides |= point.overrides
        labels = [point.label for point in chosen if point.overrides]
        combined.append(Point(overrides, ", ".join(labels)))
    return combined


def preset_point(name: str, label: str = "", **changes: Any) -> Point:
    """Returns the point of a published objective, for a base config whose `objective` is the default one.

    Args:
        name: key of `rlvr.algo.presets.PRESETS`; also the label if none is given.
        changes: see `rlvr.algo.presets.preset`.

    Raises:
        ConfigError: there is no such preset.
    """
    own, default = (_flatten(config, "objective") for config in (preset(name, **changes), ObjectiveConfig()))
    return Point({field: value for field, value in own.items() if value != default[field]}, label or name)


def _flatten(config: Any, prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}.{field.name}"
        flat |= _flatten(value, name) if dataclasses.is_dataclass(value) else {name: value}
    return flat


def load_grid(path: Path) -> tuple[Grid, str]:
    """Reads a grid file.

    Returns:
        (the grid, checked; the base config's file as for `--config`).

    Raises:
        ConfigError: naming the file and what is wrong with it.
    """
    try:
        module = _load_module(path)
        if not callable(getattr(module, "get_grid", None)):
            raise errors.ConfigError("it has no function get_grid()")
        grid = module.get_grid()
        if not isinstance(grid, Grid):
            raise errors.ConfigError(f"get_grid() returned {type(grid).__name__}, not a rlvr.grid.spec.Grid")
        grid.validate()
        if callable(grid.base) and grid.base is not getattr(module, "get_config", None):
            raise errors.ConfigError("base must be a path, or the function get_config of the grid file itself")
    except errors.ConfigError as error:
        raise errors.ConfigError(f"{path}: {error}") from error
    return grid, str(path) if callable(grid.base) else grid.base


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise errors.ConfigError("there is no such Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _describe(overrides: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in overrides.items())


def _check_point(point: Point) -> None:
    if not isinstance(point, Point):
        raise errors.ConfigError(f"points: {point!r} is not a Point")
    for name, value in point.overrides.items():
        items = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(item, bool | int | float | str) for item in items):
            raise errors.ConfigError(
                f"point {point.label!r}: {name}={value!r} must be a bool, int, float, str or a tuple of those"
            )
        if name == "seed":
            raise errors.ConfigError(f"point {point.label!r} overrides 'seed': the grid's seeds say that")


def _check_hypothesis(field: str, hypothesis: Hypothesis, labels: Sequence[str]) -> None:
    hypothesis.measure.validate(f"{field}.measure")
    errors.check_choice(f"{field}.point", hypothesis.point, labels)
    errors.check_choice(f"{field}.direction", hypothesis.direction, DIRECTIONS)
    errors.check_at_least(f"{field}.smallest_effect", hypothesis.smallest_effect, 0.0)
    if hypothesis.direction == "near" and not hypothesis.smallest_effect:
        raise errors.ConfigError(f"{field}: direction='near' needs a smallest_effect: no two means are the same")
    if bool(hypothesis.other) == (hypothesis.threshold is not None):
        raise errors.ConfigError(
            f"{field}: other={hypothesis.other!r} with threshold={hypothesis.threshold}: set exactly one of them"
        )
    if hypothesis.other:
        errors.check_choice(
            f"{field}.other", hypothesis.other, [label for label in labels if label != hypothesis.point]
        )


def _check_unique(field: str, items: Sequence[Any], what: str) -> None:
    for item in items:
        if items.count(item) > 1:
            raise errors.ConfigError(f"{field}: two have the same {what}, {item!r}")
