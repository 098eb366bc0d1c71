"""Several processes joined by `jax.distributed`: they train, save, stop, lose one of them, resume and agree."""

import json
import signal
import socket

import pytest

from tests import tiny

# Each process compiles everything for itself: the default is the least that has every part of a run in it.
DENSE = ("--config.policy.moe_layers=()", "--config.warm_start.steps=0", "--config.steps=6")
MOE = ("--config.warm_start.steps=2", "--config.steps=4", "--config.mesh.expert=2")


def start_all(workdir, flags, count=2, devices=2, **options):
    """Starts all processes of one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    joined = (f"--coordinator={address}", f"--processes={count}")
    return [
        tiny.start(workdir, *flags, *joined, f"--process_index={i}", devices=devices, **options) for i in range(count)
    ]


def finish_all(processes):
    try:
        return [tiny.finish(process, timeout=280) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("at_fault", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_error_of_one_process_is_its_exit_status(tmp_path, at_fault):
    """Not a signal, which launchers take for a crash and start again."""
    config = tmp_path / "config.py"
    config.write_text(
        "from rlvr import trainer\nfrom rlvr.errors import DataError\nfrom tests.configs.tiny import *\n"
        "def fail(*_):\n    raise DataError('mine alone')\n"
        f"if '--process_index={at_fault}' in __import__('sys').argv:\n    trainer.make_eval_sets = fail\n"
    )
    processes = start_all(tmp_path / "run", DENSE, config=str(config))
    outputs = finish_all(processes)  # the other ends by itself
    assert processes[at_fault].returncode == 1 and "error: mine alone" in outputs[at_fault], outputs
    assert processes[1 - at_fault].returncode != 0, outputs


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("flags", [DENSE, MOE], ids=["dense", "moe"])
def test_two_processes_train_stop_and_resume(tmp_path, flags):
    whole = tmp_path / "whole"
    processes = start_all(whole, flags)
    outputs = finish_all(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    printed = [[line for line in output.splitlines() if line.startswith("RESULT ")] for output in outputs]
    assert len(printed[0]) == 1 and printed[1] == []  # one result, from the first process
    result = json.loads(printed[0][0].removeprefix("RESULT "))
    assert result["steps"] == 6 and result["eval"]["sums"]["n"] == 8
    rows = tiny.read_metrics(whole)
    assert [row["step"] for row in rows] == list(range(6))
    for row in (row for row in rows if row["phase"] == "rl"):
        # Every verdict is there, though each process verified half of them only.
        assert row["verdict/correct"] + row["verdict/wrong"] == 16 and row["verdict/error"] == 0
        assert 0 < row["reward/mean"] < 1 and row["gap/max"] <= 5e-5

    stopped = tmp_path / "stopped"
    processes = start_all(stopped, flags)
    assert tiny.wait_until(lambda: tiny.lines(stopped) >= 3, processes, timeout=280)
    processes[1].send_signal(signal.SIGTERM)  # to one of them: both stop
    outputs = finish_all(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    done = tiny.lines(stopped)
    assert 3 <= done < 6
    assert f"saved at step {done} of 6" in outputs[0]
    processes = start_all(stopped, flags)
    outputs = finish_all(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert f"resuming at step {done} of 6" in outputs[0]
    assert tiny.outcome(stopped) == tiny.outcome(whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_a_lost_process_ends_the_others_and_the_run_goes_on(tmp_path, count, devices):
    """The last process is killed in a step, then the first, which coordinates; each time all are started again."""
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    finish_all(start_all(whole, DENSE, count, devices))
    for victim, line in ((count - 1, 2), (0, 4)):
        processes = start_all(workdir, DENSE, count, devices)
        assert tiny.wait_until(lambda line=line: tiny.lines(workdir) >= line, processes, timeout=280)
        processes[victim].kill()
        outputs = finish_all(processes)  # they end by themselves
        assert all(process.returncode != 0 for process in processes), outputs
        assert tiny.lines(workdir) < 6
    processes = start_all(workdir, DENSE, count, devices)
    outputs = finish_all(processes)
    assert [process.returncode for process in processes] == [0] * count, outputs
    assert "resuming at step" in outputs[0]
    assert tiny.outcome(workdir) == tiny.outcome(whole)
