"""Grids whose runs are lanes of one program: killed, resumed, refused; and the files that the comparison reads."""

import csv
import json
import random
import re
import subprocess
import sys
import time

import pytest

from rlvr import errors
from rlvr.grid.at_once import AtOnce, check_grid, share_groups
from rlvr.grid.comparison import judge
from rlvr.grid.ledger import Ledger
from rlvr.grid.measures import Measure
from rlvr.grid.page import read_outcome, write_outcome
from rlvr.grid.spec import Grid, Hypothesis, Point
from rlvr.program.batch import Batch
from tests import tiny
from tests.program.runs import STEPS, make_config

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes

REWARD = Measure("reward/mean", "mean")
POINTS = [Point({}, "base"), Point({"objective.clip_high": 0.05}, "narrow"), Point({"rollout.group_size": 8}, "wide")]
GRID = Grid(
    "base",
    POINTS,
    (0, 1),
    "base",
    [REWARD, Measure("eval/*/accuracy"), Measure("clip/high", "mean")],
    [Hypothesis("More samples earn more", REWARD, "wide", "above", "base")],
)
CONFIGS = {run.name: make_config(run.point.overrides, seed=run.seed) for run in GRID.runs()}


def drive(folder, said=None, **options):
    with tiny.runs_in_process():
        say = (said if said is not None else []).append
        at_once = AtOnce(folder, CONFIGS, **{"lanes": 0, "retry_failed": False, "say": say, **options})
        return at_once.drive(GRID.runs())


def table(folder):
    outcome = read_outcome(GRID, "base", folder)
    write_outcome(outcome, "lanes", folder)
    return (folder / "results.csv").read_text(), outcome


def lines(folder, run):
    rows = [json.loads(line) for line in (folder / "runs" / run.name / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "wall_s"} for row in rows]


class Killed(BaseException):
    """What ends the process in the middle of a block."""


def test_a_killed_grid_ends_with_the_table_of_one_that_was_not(tmp_path, monkeypatch):
    whole, killed, said = tmp_path / "whole", tmp_path / "killed", []
    assert drive(whole, said)
    begun = [line.partition(": ")[2] for line in said if "lanes" in line]
    assert begun == ["one program of 4 lanes", "one program of 2 lanes"]
    expected, outcome = table(whole)
    assert outcome.counts() == {"pending": 0, "running": 0, "failed": 0, "done": 6}
    rows = {(row["point"], row["metric"]): row for row in csv.DictReader(expected.splitlines())}
    assert rows["base", "eval/*/accuracy"]["seeds"] == "2" and float(rows["wide", "reward/mean"]["sampled_tokens"]) > 0
    assert judge(GRID.hypotheses[0], GRID, outcome.histories).seeds == 2
    for run in GRID.runs():
        result = json.loads((whole / "runs" / run.name / "result.json").read_text())
        assert result["eval"]["sums"]["n"] == 8 and result["steps"] == STEPS + 60
        assert [row["step"] for row in lines(whole, run)] == list(range(STEPS + 60))
    assert not [*(whole / "groups").iterdir()]

    ordinary, count = Batch.run, 0

    def die(self, lane, first, steps):
        nonlocal count
        count += 1
        if count in (2, 4):  # of the first group: after one saved block; of the second: before any
            raise Killed
        return ordinary(self, lane, first, steps)

    monkeypatch.setattr(Batch, "run", die)
    for _ in range(2):
        with pytest.raises(Killed):
            drive(killed)
    assert table(killed)[1].counts()["pending"] == 2
    assert drive(killed)
    assert table(killed)[0] == expected
    assert [lines(killed, run) for run in GRID.runs()] == [lines(whole, run) for run in GRID.runs()]
    attempts = [Ledger(killed).read(run).attempts for run in GRID.runs()]
    assert attempts == [2, 2, 2, 2, 2, 2]
    count = 100
    assert drive(killed) and count == 100  # nothing is left to do


@pytest.mark.slow
def test_a_process_killed_at_random_moments_ends_with_the_same_table(tmp_path):
    """Four SIGKILLs, each a random while after a random number of lines; then once to the end."""

    def start(folder):
        command = [sys.executable, "-m", "launch.grid", "--grid=tests/configs/lanes.py", f"--workdir={folder}"]
        output = (tmp_path / "output").open("a")
        return subprocess.Popen(
            [*command, "--one_program"], env=tiny.environment(), cwd=tiny.ROOT, stdout=output, stderr=output
        )

    whole, killed, draw = tmp_path / "whole", tmp_path / "killed", random.Random(6)
    assert start(whole).wait(600) == 0, (tmp_path / "output").read_text()

    def written():
        return sum(tiny.lines(run) for run in killed.glob("runs/*/*"))

    total = sum(tiny.lines(run) for run in whole.glob("runs/*/*"))
    for target in sorted(draw.sample(range(total - 50), 4)):
        process = start(killed)
        assert tiny.wait_until(lambda target=target: written() >= target, [process])
        time.sleep(draw.uniform(0.0, 0.3))
        assert process.poll() is None
        process.kill()
        process.wait()
    assert start(killed).wait(600) == 0, (tmp_path / "output").read_text()
    for name in ("results.csv", "verdicts.csv"):
        assert (killed / name).read_text() == (whole / name).read_text()
    hashes = [
        {path.parent.relative_to(folder): json.loads(path.read_text())["params_sha256"] for path in found}
        for folder, found in ((f, sorted(f.glob("runs/*/*/result.json"))) for f in (whole, killed))
    ]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 8


def test_a_run_that_fails_stops_no_other(tmp_path, monkeypatch):
    ordinary = Batch.run

    def blow_up(self, lane, first, steps):
        lane, rows, skipped = ordinary(self, lane, first, steps)
        return lane, rows, [9.0, *skipped[1:]]

    monkeypatch.setattr(Batch, "run", blow_up)
    assert drive(tmp_path)
    records = {run.title: Ledger(tmp_path).read(run) for run in GRID.runs()}
    failed = {title: record.reason for title, record in records.items() if record.state == "failed"}
    reason = "9 updates in a row had non-finite gradients and were skipped"
    assert failed == {"base, seed 0": reason, "wide, seed 0": reason}
    assert [record.state for record in records.values()].count("done") == 4
    monkeypatch.setattr(Batch, "run", None)  # nothing runs again
    assert drive(tmp_path) and table(tmp_path)[1].counts()["failed"] == 2
    again = AtOnce(tmp_path, CONFIGS, lanes=0, retry_failed=True, say=print)._groups(GRID.runs())
    assert [([run.title for run in group], begun) for group, begun in again] == [
        (["base, seed 0"], False),
        (["wide, seed 0"], False),
    ]


def test_a_point_that_no_program_can_express_is_refused_by_name():
    runs = GRID.runs()
    bad = {**CONFIGS, runs[1].name: make_config({"rollout.min_p": 0.1})}
    with pytest.raises(errors.ConfigError, match=re.escape("point 'narrow': rollout.min_p=0.1 cannot be part of one")):
        check_grid(runs, bad)


def test_machines_share_structures_not_runs():
    runs = GRID.runs()
    shares = [share_groups(runs, CONFIGS, index, 2) for index in range(2)]
    assert sorted(run.name for share in shares for run in share) == sorted(run.name for run in runs)
    assert [{run.point.label for run in share} for share in shares] == [{"base", "narrow"}, {"wide"}]
