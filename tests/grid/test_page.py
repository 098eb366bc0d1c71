"""The tables and the page, from workdirs written by hand."""

import csv
import json
import os
import re

import pytest

from rlvr.grid.ledger import Ledger, Record
from rlvr.grid.measures import Measure
from rlvr.grid.page import read_outcome, write_outcome
from rlvr.grid.spec import Grid, Hypothesis, Point, Run

BASE, HIGH = Point({}, "base"), Point({"objective.clip_high": 0.3}, "<high>")
REWARD, ACCURACY = Measure("reward/mean"), Measure("eval/*/accuracy", "mean", 0.5)


def make_grid(seeds=(0, 1, 2)):
    hypotheses = [
        Hypothesis("<b>High</b> is better", REWARD, "<high>", "above", "base"),
        Hypothesis("It reaches one", REWARD, "base", "above", threshold=1.0),
    ]
    return Grid("configs/quickstart.py", [BASE, HIGH], seeds, "base", [REWARD, ACCURACY], hypotheses)


def record(folder, run, state="done", rewards=(), reason=""):
    ledger = Ledger(folder)
    lock = ledger.claim(run)
    ledger.write(run, Record(state, reason, 1, 12.0))
    os.close(lock)
    workdir = folder / "runs" / run.name
    workdir.mkdir(parents=True)
    rows = [
        {
            "step": step + 5,
            "phase": "rl",
            "reward/mean": reward,
            "eval/sums/accuracy": reward and reward / 2,
            "rollout/tokens_mean": 3.0,
            "rollout/tokens": 24.0,
        }
        for step, reward in enumerate(rewards)
    ]
    if state == "done":
        (workdir / "report.html").write_text("")
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write(grid, folder):
    outcome = read_outcome(grid, "configs/quickstart.py", folder)
    page = write_outcome(outcome, "mine", folder).read_text()
    rows = {name: list(csv.DictReader((folder / f"{name}.csv").open())) for name in ("results", "runs", "verdicts")}
    return outcome, page, rows


def fill(folder, grid):
    for seed in grid.seeds:
        record(folder, Run(BASE, seed), rewards=[0.0, 0.2 + seed / 10])
        record(folder, Run(HIGH, seed), rewards=[0.1, 0.7 + seed / 9])


def test_tables_and_page(tmp_path):
    grid = make_grid()
    fill(tmp_path, grid)
    outcome, page, rows = write(grid, tmp_path)
    assert outcome.counts() == {"pending": 0, "running": 0, "failed": 0, "done": 6}
    first = rows["results"][0]
    assert (first["point"], first["metric"], first["seeds"], first["pairs"]) == ("base", "reward/mean", "3", "0")
    assert float(first["mean"]) == pytest.approx(0.3) and first["difference"] == ""
    assert float(first["sampled_tokens"]) == 48.0 and float(first["length"]) == 3.0
    second = rows["results"][1]
    assert float(second["difference"]) == pytest.approx(0.5 + 1 / 90 * 1)
    assert float(second["difference_low"]) < float(second["difference"]) < float(second["difference_high"])
    assert [(row["hypothesis"], row["verdict"]) for row in rows["verdicts"]] == [
        ("<b>High</b> is better", "supported"),
        ("It reaches one", "contradicted"),
    ]
    assert len(rows["runs"]) == 6 and float(rows["runs"][0]["reward/mean (final)"]) == pytest.approx(0.2)
    assert "&lt;b&gt;High&lt;/b&gt; is better" in page and "<b>High" not in page and "<high>" not in page
    assert page.count("<svg") == 3  # reward, accuracy, length: no entropy was recorded
    assert 'class="notices"' not in page
    # Self-contained: nothing is fetched, nothing runs.
    assert not re.search(r'<script|src=|url\((?!#)|@import|href="http', page)
    links = re.findall(r'<a href="([^"]+)"', page)
    assert len(links) == 6 and links[0] == f"runs/{Run(BASE, 0).name}/report.html"


def test_the_same_runs_give_the_same_table_whatever_they_took(tmp_path):
    grid = make_grid()
    for name in ("one", "other"):
        fill(tmp_path / name, grid)
    ledger = Ledger(tmp_path / "other")
    ledger.write(Run(BASE, 0), Record("done", "", 5, 99.0))
    for name in ("one", "other"):
        write(grid, tmp_path / name)
    assert (tmp_path / "one" / "results.csv").read_bytes() == (tmp_path / "other" / "results.csv").read_bytes()
    assert (tmp_path / "one" / "verdicts.csv").read_bytes() == (tmp_path / "other" / "verdicts.csv").read_bytes()


def test_what_is_not_done_is_said(tmp_path):
    grid = make_grid()
    record(tmp_path, Run(BASE, 0), rewards=[0.1, 0.2])
    record(tmp_path, Run(HIGH, 0), rewards=[None])
    record(tmp_path, Run(BASE, 1), "failed", rewards=[0.5], reason="exit status 1: error: <no> rows")
    record(tmp_path, Run(Point({"steps": 7}), 4), rewards=[0.5])
    outcome, page, rows = write(grid, tmp_path)
    assert outcome.counts() == {"pending": 3, "running": 0, "failed": 1, "done": 2}
    assert "base, seed 1: failed (exit status 1: error: &lt;no&gt; rows)" in page
    assert "&lt;high&gt;: reward/mean (final): seeds 0 lack it and are left out" in page
    assert "steps=7-" in page and "belong to no run of the grid file" in page
    assert [row["seeds"] for row in rows["results"]] == ["1", "0", "1", "0"]
    assert rows["results"][0]["mean_low"] == ""
    assert {row["verdict"] for row in rows["verdicts"]} == {"undecided"}
    assert "0.2 (no interval)" in page


def test_an_empty_folder_and_one_seed(tmp_path):
    (tmp_path / "empty").mkdir()
    _, page, rows = write(make_grid(), tmp_path / "empty")
    assert "no run is done" in page and len(rows["runs"]) == 6
    grid = make_grid(seeds=(0,))
    fill(tmp_path, grid)
    _, page, rows = write(grid, tmp_path)
    assert "one seed: there are no intervals, and every hypothesis is undecided" in page
    assert {row["verdict"] for row in rows["verdicts"]} == {"undecided"}


def test_long_curves_are_binned_and_runs_of_other_lengths_stay(tmp_path):
    grid = make_grid(seeds=(0, 1))
    for point in (BASE, HIGH):
        record(tmp_path, Run(point, 0), rewards=[step / 100 for step in range(150)])
        record(tmp_path, Run(point, 1), rewards=[step / 100 for step in range(100)])
    _, page, _ = write(grid, tmp_path)
    assert page.count("<svg") == 3 and "nan" not in page.lower().replace("nano", "")
