"""python -m launch.grid as a user has it: mistakes before anything runs, kills, failures, the report."""

import csv
import itertools
import json
import re
import subprocess
import sys

import pytest

from launch import cli
from launch import grid as launch_grid
from rlvr import errors
from rlvr.config import ExperimentConfig
from rlvr.grid import checking
from rlvr.grid.ledger import Ledger
from rlvr.grid.measures import Measure
from rlvr.grid.spec import Grid, Point, load_grid
from tests import tiny

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes

GRID = "tests/configs/grid.py"
POINTS = {"no data": Point({"data.tasks[0].path": "tests/configs/nowhere"}), "tiny": Point({})}


def command(folder, *arguments, grid=GRID):
    return [sys.executable, "-m", "launch.grid", f"--grid={grid}", f"--workdir={folder}", *arguments]


def launch(folder, *arguments, grid=GRID):
    return subprocess.run(
        command(folder, *arguments, grid=grid),
        env=tiny.environment(),
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def check(*points, base="configs/quickstart.py"):
    grid = Grid(base, points, (0, 1), points[0].label, [Measure("reward/mean")])
    return checking.resolve_runs("mine.py", base, grid.runs(), launch_grid._parse)


def test_a_killed_driver_ends_with_the_table_of_one_that_was_not(tmp_path):
    folder = tmp_path / "killed"
    base = folder / "runs" / POINTS["tiny"].id / "seed0"
    output = (tmp_path / "output").open("w")
    process = subprocess.Popen(command(folder), env=tiny.environment(), cwd=tiny.ROOT, stdout=output, stderr=output)
    try:
        assert tiny.wait_until(lambda: tiny.lines(base) >= tiny.WARM_STEPS + 2, [process])
    finally:
        process.kill()
        process.wait()
    done = launch(folder)
    assert done.returncode == 1, done.stderr  # a point failed
    said = done.stdout.splitlines()
    assert said[-1].startswith("RESULT ")
    result = json.loads(said[-1].removeprefix("RESULT "))
    assert result["runs"] == {"pending": 0, "running": 0, "failed": 1, "done": 2}
    assert result["verdicts"] == {"A dense policy earns less": "undecided"}
    assert Ledger(folder).read(next(run for run in runs() if run.point.label == "tiny")).attempts == 2
    # The run itself: as if nothing had happened.
    assert tiny.outcome(base) == tiny.outcome(tiny.reference_run())
    failed = next(run for run in runs() if run.point.label == "no data")
    reason = Ledger(folder).read(failed).reason
    assert reason.startswith("exit status 1: error: ") and "tests/configs/nowhere" in reason
    page = (folder / "grid.html").read_text()
    assert "no data, seed 0: failed (exit status 1: error: " in page and "one seed: there are no intervals" in page
    table = (folder / "results.csv").read_text()
    rows = {row["point"]: row for row in csv.DictReader(table.splitlines())}
    metrics = [row["reward/mean"] for row in tiny.read_metrics(tiny.reference_run())[-tiny.STEPS // 2 :]]
    assert float(rows["tiny"]["mean"]) == pytest.approx(sum(metrics) / len(metrics))
    assert rows["dense"]["difference"] != "" and rows["no data"]["seeds"] == "0"
    # Nothing is left to do: no run is started, the table stays.
    again = launch(folder, "--report_only")
    assert again.returncode == 1 and "started" not in again.stdout
    assert (folder / "results.csv").read_text() == table
    # A workdir of another base config is refused before anything is done to it.
    other = tmp_path / "other.py"
    other.write_text((tiny.ROOT / GRID).read_text().replace("return make_config()", "return make_config(moe=False)"))
    refused = launch(folder, grid=other)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "was begun with another base config" in refused.stderr and "policy.moe_layers: [1] there" in refused.stderr


def runs():
    return load_grid(tiny.ROOT / GRID)[0].runs()


def test_every_shard_has_its_own_runs_and_all_have_all(tmp_path, monkeypatch):
    shards = [launch_grid._read_shard(f"{index}/3") for index in range(3)]
    everything = list(range(10))
    parts = [everything[index::count] for index, count in shards]
    assert sorted(itertools.chain(*parts)) == everything
    for text in ("3/3", "1", "a/b", "0/0", "-1/2"):
        with pytest.raises(errors.ConfigError, match=re.escape(f"--shard={text}: i/n with 0 <= i < n")):
            launch_grid._read_shard(text)


def test_environments_are_given_once_for_each_worker():
    read = launch_grid._read_environments(["CUDA_VISIBLE_DEVICES=0,1 A='b c'", "CUDA_VISIBLE_DEVICES=2"], 2)
    assert read == [{"CUDA_VISIBLE_DEVICES": "0,1", "A": "b c"}, {"CUDA_VISIBLE_DEVICES": "2"}]
    assert launch_grid._read_environments([], 3) == []
    with pytest.raises(errors.ConfigError, match="given 1 times for --workers=2"):
        launch_grid._read_environments(["A=1"], 2)
    with pytest.raises(errors.ConfigError, match="'nothing' is not NAME=VALUE"):
        launch_grid._read_environments(["nothing"], 1)


def test_overrides_are_typed_as_on_the_command_line():
    points = [
        Point({"objective.clip_high": 1, "policy.moe_layers": (1,), "policy.tied_head": False}, "a"),
        Point({"data.tasks[0].options.digits": 1, "rollout.stop_strings": ("a b", "='"), "steps": 7}, "b"),
    ]
    configs = check(*points)
    a, b = (configs[f"{point.id}/seed1"] for point in points)
    assert isinstance(a, ExperimentConfig) and a.seed == b.seed == 1
    assert repr(a.objective.clip_high) == "1.0" and a.policy.moe_layers == (1,) and a.policy.tied_head is False
    assert b.data.tasks[0].options["digits"] == 1 and b.rollout.stop_strings == ("a b", "='") and b.steps == 7


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"objective.clip_low": 0.1, "objective.clip_hgh": 0.3},
            "point 'mine', objective.clip_hgh=0.3: the config has no field 'objective.clip_hgh'; "
            "did you mean --config.objective.clip_high?",
        ),
        ({"steps": 2.5}, "point 'mine', steps=2.5: flag --config.steps=2.5: invalid literal"),
        ({"data.tasks[3].eval_size": 2}, "point 'mine', data.tasks[3].eval_size=2: "),
        ({"objective.advantage": "grop"}, "point 'mine': objective.advantage='grop' is not known; did you mean 'grpo'"),
        ({"rollout.prompts": 6, "update.minibatches": 4}, "point 'mine': rollout.prompts=6 is not a multiple"),
        ({"steps": 320}, "points 'first' and 'mine' are the same run"),
    ],
)
def test_a_mistake_in_a_point_is_named_before_anything_runs(overrides, message):
    with pytest.raises(errors.ConfigError, match=re.escape(f"mine.py: {message}")):
        check(Point({}, "first"), Point(overrides, "mine"))


def test_a_missing_base_and_checkpoint_are_named(tmp_path):
    with pytest.raises(errors.ConfigError, match=r"mine.py: base 'configs/quick.py': --config: .*No such file"):
        check(Point({}, "first"), base="configs/quick.py")
    with pytest.raises(errors.WeightsError, match=r"mine.py: point 'first': .*nowhere"):
        check(Point({"checkpoint": str(tmp_path / "nowhere")}, "first"))


def test_a_typo_in_a_grid_file_starts_nothing(tmp_path):
    path = tmp_path / "typo.py"
    path.write_text((tiny.ROOT / GRID).read_text().replace("objective.advantage", "objective.advantge"))
    done = launch(tmp_path / "runs", grid=path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: {path}: point 'dense', objective.advantge='dr_grpo': the config has no field" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_checking_touches_no_device():
    code = (
        "from pathlib import Path; from launch import grid; from rlvr.grid import checking, spec\n"
        "from jax._src import xla_bridge\n"
        f"path = Path({GRID!r}); own, base = spec.load_grid(path)\n"
        "print(len(checking.resolve_runs(path, base, own.runs(), grid._parse)), xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, env=tiny.environment(), capture_output=True)
    assert done.stdout.split() == [b"3", b"False"], done.stderr.decode()


@pytest.mark.parametrize("path", sorted((tiny.ROOT / "configs" / "grids").glob("*.py")), ids=lambda path: path.stem)
def test_the_grids_that_come_along_can_run(path):
    grid, base = load_grid(path)
    assert len(checking.resolve_runs(path, base, grid.runs(), launch_grid._parse)) == len(grid.runs())
    assert cli.parse_config(base, []).name
