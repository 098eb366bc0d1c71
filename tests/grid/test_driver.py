"""The ledger and the driver: failures, kills of either side, two drivers on one folder, stops."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rlvr import errors
from rlvr.grid import driver as driver_module
from rlvr.grid.driver import Worker, share_processors
from rlvr.grid.ledger import Ledger, Record
from tests.grid.driving import ROOT, RUNS, STEPS, make_driver


def lines(folder, run, name="metrics.jsonl"):
    path = folder / "runs" / run.name / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def states(folder):
    return [Ledger(folder).read(run).state for run in RUNS]


def wait_for(condition, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_all_run_and_a_second_driver_finds_nothing_to_do(tmp_path):
    assert make_driver(tmp_path).drive(RUNS)
    assert states(tmp_path) == ["done"] * 4
    assert [len(lines(tmp_path, run)) for run in RUNS] == [STEPS] * 4
    assert make_driver(tmp_path).drive(RUNS)
    assert [len(lines(tmp_path, run, "attempts.jsonl")) for run in RUNS] == [1] * 4


def test_failures_are_recorded_with_their_reason_and_stop_nobody(tmp_path):
    modes = {RUNS[0].title: "fail", RUNS[2].title: "crash"}
    said = []
    assert make_driver(tmp_path, modes=modes, said=said).drive(RUNS)
    assert states(tmp_path) == ["failed", "done", "failed", "done"]
    ledger = Ledger(tmp_path)
    assert ledger.read(RUNS[0]).reason == "exit status 1: error: data/train.jsonl has no rows"
    assert ledger.read(RUNS[2]).reason == "killed by SIGSEGV"
    assert "last words" in ledger.log(RUNS[0]).read_text()
    assert any("clip_high=0.2, seed 0: failed" in line and "no rows" in line for line in said)
    # Not again, unless it is asked for, and then once.
    assert make_driver(tmp_path).drive(RUNS)
    assert states(tmp_path) == ["failed", "done", "failed", "done"]
    assert make_driver(tmp_path, modes={RUNS[0].title: "fail"}, retry_failed=True).drive(RUNS)
    assert states(tmp_path) == ["failed", "done", "done", "done"]
    assert ledger.read(RUNS[0]).attempts == 2 and ledger.read(RUNS[1]).attempts == 1
    assert ledger.read(RUNS[2]).reason == ""


def test_a_zero_exit_without_a_result_is_not_done(tmp_path):
    def stop_the_run():
        wait_for(lambda: lines(tmp_path, RUNS[0]))
        os.kill(lines(tmp_path, RUNS[0], "attempts.jsonl")[0]["pid"], signal.SIGTERM)

    thread = threading.Thread(target=stop_the_run)
    thread.start()
    assert make_driver(tmp_path, pause=0.3).drive(RUNS[:1])
    thread.join()
    assert Ledger(tmp_path).read(RUNS[0]) == Record(
        "pending", "stopped by a signal", 1, Ledger(tmp_path).read(RUNS[0]).seconds
    )
    assert 0 < len(lines(tmp_path, RUNS[0])) < STEPS


def test_a_stop_saves_the_running_ones_and_the_rest_goes_on_later(tmp_path):
    def stop_the_driver():
        wait_for(lambda: lines(tmp_path, RUNS[0]) and lines(tmp_path, RUNS[1]))
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=stop_the_driver)
    thread.start()
    assert not make_driver(tmp_path, pause=0.3, workers=[Worker(), Worker()]).drive(RUNS)
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert states(tmp_path) == ["pending"] * 4
    there = [len(lines(tmp_path, run)) for run in RUNS]
    assert all(0 < count < STEPS for count in there[:2]) and there[2:] == [0, 0]
    assert make_driver(tmp_path).drive(RUNS)
    assert states(tmp_path) == ["done"] * 4
    # Resumed, not begun anew: no step is there twice.
    assert [[row["step"] for row in lines(tmp_path, run)] for run in RUNS] == [list(range(STEPS))] * 4


def test_a_killed_driver_takes_its_run_along_and_the_next_one_resumes_it(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.grid.driving", str(tmp_path), "0.3"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        wait_for(lambda: len(lines(tmp_path, RUNS[0])) >= 1)
        written = json.loads((tmp_path / "ledger" / f"{RUNS[0].name}.json").read_text())
        assert written["state"] == "running" and states(tmp_path)[0] == "running"
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: states(tmp_path)[0] == "pending")
    assert Ledger(tmp_path).read(RUNS[0]).reason == "its processes were killed"
    assert len(lines(tmp_path, RUNS[0])) < STEPS, "the run went on without its driver"
    assert make_driver(tmp_path).drive(RUNS)
    assert states(tmp_path) == ["done"] * 4
    assert [row["step"] for row in lines(tmp_path, RUNS[0])] == list(range(STEPS))


def test_what_another_driver_holds_is_waited_for_and_not_run_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(driver_module, "_POLL_CLAIMS_S", 0.05)
    ledger = Ledger(tmp_path)
    lock = ledger.claim(RUNS[0])
    assert lock is not None and ledger.claim(RUNS[0]) is None
    said = []

    def finish_elsewhere():
        wait_for(lambda: any("waiting for 1 runs" in line for line in said))
        ledger.write(RUNS[0], Record("done", attempts=1))
        os.close(lock)

    thread = threading.Thread(target=finish_elsewhere)
    thread.start()
    assert make_driver(tmp_path, said=said).drive(RUNS)
    thread.join()
    assert states(tmp_path) == ["done"] * 4
    assert not (tmp_path / "runs" / RUNS[0].name).exists()


def test_two_drivers_share_the_runs(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.grid.driving", str(tmp_path), "0.02"]
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert states(tmp_path) == ["done"] * 4
    assert [len(lines(tmp_path, run, "attempts.jsonl")) for run in RUNS] == [1] * 4
    assert [len(lines(tmp_path, run)) for run in RUNS] == [STEPS] * 4


def test_workers_run_at_the_same_time_with_their_own_environment(tmp_path):
    cpu = min(os.sched_getaffinity(0))
    workers = [Worker((cpu,), {"DEVICE": "0"}), Worker((), {"DEVICE": "1"})]
    assert make_driver(tmp_path, pause=0.2, workers=workers).drive(RUNS[:2])
    first, second = (lines(tmp_path, run, "attempts.jsonl")[0] for run in RUNS[:2])
    assert (first["DEVICE"], second["DEVICE"]) == ("0", "1")
    assert first["EVERYWHERE"] == second["EVERYWHERE"] == "yes"
    assert first["cpus"] == [cpu] and second["cpus"] == sorted(os.sched_getaffinity(0))
    ended = json.loads((tmp_path / "runs" / RUNS[0].name / "result.json").read_text())["ended"]
    assert second["at"] < ended


@pytest.mark.parametrize(
    ("cpus", "workers", "shares"),
    [
        ({0, 1, 2, 3}, 2, [(0, 1), (2, 3)]),
        ({4, 5, 6}, 2, [(4,), (5,)]),
        ({0, 1}, 1, [()]),
        ({0, 1}, 3, [(), (), ()]),
    ],
)
def test_processors_are_divided(monkeypatch, cpus, workers, shares):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cpus)
    assert [worker.cpus for worker in share_processors(workers)] == shares


def test_a_damaged_record_is_refused(tmp_path):
    ledger = Ledger(tmp_path)
    lock = ledger.claim(RUNS[0])
    assert lock is not None
    ledger.write(RUNS[0], Record("done"))
    os.close(lock)
    path = tmp_path / "ledger" / f"{RUNS[0].name}.json"
    path.write_text('{"state": "do')
    with pytest.raises(errors.WorkdirError, match="is damaged"):
        ledger.read(RUNS[0])
    path.write_text('{"state": "dozing"}')
    with pytest.raises(errors.WorkdirError, match="'dozing' is none of pending, running, failed, done"):
        ledger.read(RUNS[0])
