"""Grid files: points, their identity, and every mistake named."""

import dataclasses
import re

import pytest

from rlvr import errors
from rlvr.grid.measures import Measure
from rlvr.grid.spec import Grid, Hypothesis, Point, Run, cross, load_grid, preset_point, product, zipped

LOW, HIGH, ADVANTAGE = "objective.clip_low", "objective.clip_high", "objective.advantage"


def make_grid(**changes):
    fields = {
        "base": "configs/quickstart.py",
        "points": [Point({}, "base"), Point({HIGH: 0.3}, "high")],
        "seeds": (0, 1),
        "baseline": "base",
        "measures": [Measure("reward/mean")],
    }
    return Grid(**{**fields, **changes})


def test_points_are_products_zips_and_joined_lists():
    grid = product({LOW: [0.1, 0.2], HIGH: (0.3, 0.4)})
    assert [point.overrides for point in grid] == [
        {LOW: 0.1, HIGH: 0.3},
        {LOW: 0.1, HIGH: 0.4},
        {LOW: 0.2, HIGH: 0.3},
        {LOW: 0.2, HIGH: 0.4},
    ]
    pairs = zipped({LOW: [0.1, 0.2], HIGH: [0.3, 0.4]})
    assert [point.overrides for point in pairs] == [{LOW: 0.1, HIGH: 0.3}, {LOW: 0.2, HIGH: 0.4}]
    crossed = cross([Point({}, "GRPO"), Point({ADVANTAGE: "rloo"}, "RLOO")], product({HIGH: [0.3, 0.4]}))
    assert [point.label for point in crossed] == [
        "clip_high=0.3",
        "clip_high=0.4",
        "RLOO, clip_high=0.3",
        "RLOO, clip_high=0.4",
    ]
    assert crossed[3].overrides == {ADVANTAGE: "rloo", HIGH: 0.4}
    with pytest.raises(
        errors.ConfigError, match=r"equally many values \(objective.clip_low: 2, objective.clip_high: 1"
    ):
        zipped({LOW: [0.1, 0.2], HIGH: [0.3]})
    with pytest.raises(errors.ConfigError, match=r"change 'objective.clip_high' twice"):
        cross(product({HIGH: [0.3]}), product({HIGH: [0.4]}))


def test_an_id_depends_on_the_overrides_alone_and_never_changes():
    one, other = Point({LOW: 0.1, HIGH: 0.3}), Point({HIGH: 0.3, LOW: 0.1}, "a name")
    assert one.id == other.id == "clip_high=0.3_clip_low=0.1-7acf819f"
    assert Point({LOW: 0.3, HIGH: 0.1}).id != one.id
    # The same last names in other sections are other points.
    assert Point({"optimizer.learning_rate": 1e-3}).id != Point({"warm_start.optimizer.learning_rate": 1e-3}).id
    assert Point({}).id == "base-44136fa3"
    assert re.fullmatch(r"[A-Za-z0-9._=-]{1,69}", Point({"checkpoint": "/some where/" + "é" * 200}).id)
    assert Run(one, 3).name == "clip_high=0.3_clip_low=0.1-7acf819f/seed3"
    assert Run(one, 3).overrides() == {LOW: 0.1, HIGH: 0.3, "seed": 3}


def test_presets_are_points():
    assert preset_point("dr_grpo").overrides == {
        "objective.advantage": "dr_grpo",
        "objective.aggregation": "seq_sum_norm",
    }
    tis = preset_point("seq_tis", "TIS", clip_high=0.2)
    assert tis.label == "TIS" and tis.overrides["objective.correction.high"] == 5.0
    assert "objective.clip_high" not in tis.overrides
    with pytest.raises(errors.ConfigError, match="did you mean 'grpo'"):
        preset_point("grop")


def test_every_point_comes_with_the_first_seed_before_any_with_the_second():
    runs = make_grid().runs()
    assert [(run.point.label, run.seed) for run in runs] == [("base", 0), ("high", 0), ("base", 1), ("high", 1)]


CLAIM = Hypothesis("higher is better", Measure("reward/mean"), "high", "above", "base")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": []}, "points is empty"),
        ({"seeds": ()}, "seeds is empty"),
        ({"measures": []}, "measures is empty"),
        ({"seeds": (0, 1, 0)}, "seeds: two have the same value, 0"),
        ({"seeds": (0, 1.5)}, "seeds: 1.5 is not an integer"),
        ({"baseline": "bass"}, "baseline='bass' is not known; did you mean 'base'"),
        ({"points": [Point({}, "base"), Point({HIGH: 0.3}, "base")]}, "two have the same label, 'base'"),
        (
            {"points": [Point({LOW: 0.1, HIGH: 0.3}, "base"), Point({HIGH: 0.3, LOW: 0.1}, "b")]},
            "points: two have the same overrides",
        ),
        ({"points": [Point({HIGH: None}, "base")]}, r"point 'base': objective.clip_high=None must be a bool"),
        ({"points": [Point({"seed": 3}, "base")]}, "point 'base' overrides 'seed'"),
        ({"measures": [Measure("reward/mean", "lats")]}, r"measures\[0\].summary='lats' is not known"),
        ({"measures": [Measure("reward/mean", "mean", 0.0)]}, r"measures\[0\].share=0.0 must be above 0"),
        ({"measures": [Measure("eval/*/*")]}, "has more than one"),
        ({"hypotheses": [dataclasses.replace(CLAIM, point="hihg")]}, r"hypotheses\[0\].point='hihg'.*mean 'high'"),
        ({"hypotheses": [dataclasses.replace(CLAIM, other="high")]}, r"other='high' is not known"),
        ({"hypotheses": [dataclasses.replace(CLAIM, other="")]}, "set exactly one of them"),
        ({"hypotheses": [dataclasses.replace(CLAIM, threshold=0.0)]}, "set exactly one of them"),
        ({"hypotheses": [dataclasses.replace(CLAIM, direction="up")]}, r"direction='up' is not known"),
        ({"hypotheses": [dataclasses.replace(CLAIM, direction="near")]}, "direction='near' needs a smallest_effect"),
        ({"hypotheses": [dataclasses.replace(CLAIM, smallest_effect=-1.0)]}, "must be at least 0"),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(errors.ConfigError, match=message):
        make_grid(**changes).validate()


def test_claims_are_readable():
    measure = Measure("reward/mean", "slope", 0.5)
    claim = dataclasses.replace(CLAIM, measure=measure, smallest_effect=0.1)
    assert claim.claim() == "reward/mean (slope over the last 0.5 of the steps): high above base by more than 0.1"
    near = dataclasses.replace(claim, measure=Measure("reward/mean"), direction="near", other="", threshold=0.0)
    assert near.claim() == "reward/mean (final): high near 0 by at most 0.1"


GRID_FILE = """
from rlvr.grid.measures import Measure
from rlvr.grid.spec import Grid, Point

def get_config():
    raise AssertionError("not called for reading the grid")

def other():
    pass

def get_grid():
    return Grid(base=BASE, points=[Point({}, "base")], seeds=(0,), baseline="base", measures=[Measure("reward/mean")])
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "it has no function get_grid"),
        ("def get_grid():\n    return 3", "returned int, not a rlvr.grid.spec.Grid"),
        (GRID_FILE.replace("BASE", "other"), "base must be a path, or the function get_config of the grid file"),
        (
            GRID_FILE.replace("BASE", "get_config").replace('baseline="base"', 'baseline="b"'),
            "baseline='b' is not known",
        ),
    ],
)
def test_a_grid_file_that_cannot_work_is_named(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(errors.ConfigError, match=rf"^{re.escape(str(path))}: .*{message}"):
        load_grid(path)
    with pytest.raises(errors.ConfigError, match=r"none.py: there is no such Python file"):
        load_grid(tmp_path / "none.py")


def test_the_base_is_a_path_or_the_grid_file_itself(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GRID_FILE.replace("BASE", "get_config"))
    assert load_grid(path)[1] == str(path)
    path.write_text(GRID_FILE.replace("BASE", '"configs/quickstart.py"'))
    assert load_grid(path)[1] == "configs/quickstart.py"
