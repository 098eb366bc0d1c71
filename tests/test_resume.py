"""A run that is killed, stopped, or moved to another mesh ends as if nothing had happened."""

import contextlib
import itertools
import random
import shutil
import signal
import time

import pytest

from rlvr import evaluation, trainer
from rlvr.rollout.engine import Interrupted
from tests import tiny

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes


def kill_when(workdir, condition, *, delay=0.0):
    """Starts the run, kills it `delay` seconds after the condition holds, and returns what is then on the disk."""
    process = tiny.start(workdir)
    try:
        assert tiny.wait_until(condition, [process]), tiny.finish(process)
        time.sleep(delay)
        assert process.poll() is None, "the run ended before it was killed"
    finally:
        process.kill()
        tiny.finish(process)
    assert not (workdir / "result.json").exists()
    return tiny.lines(workdir), sorted(path.name for path in (workdir / "checkpoints").glob("*"))


def being_saved(workdir, step):
    """A condition: the checkpoint of a step is being written and is not yet whole."""
    checkpoints = workdir / "checkpoints"
    return lambda: not (checkpoints / str(step)).exists() and any(checkpoints.glob(f"{step}.*"))


def test_killed_three_times(tmp_path):
    """In the warm start, in the RL, and while a checkpoint is being written; each time begun again."""
    reference = tiny.outcome(tiny.reference_run())
    workdir, chance = tmp_path / "run", random.Random(20260)
    done, _ = kill_when(workdir, lambda: tiny.lines(workdir) >= 3, delay=chance.uniform(0, 0.01))
    assert 3 <= done <= tiny.WARM_STEPS
    done, _ = kill_when(workdir, lambda: tiny.lines(workdir) >= 7, delay=chance.uniform(0, 0.02))
    assert done >= 7
    # Whatever the second kill left, the last steps are still to be done, and step 10 is always saved.
    _, left = kill_when(workdir, being_saved(workdir, 10))
    assert "10" not in left, left
    again = tiny.launch(workdir)
    assert again.returncode == 0, again.stderr
    assert "resuming at step" in again.stderr
    assert tiny.outcome(workdir) == reference


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("staleness", [0, 1])
def test_killed_twenty_times(tmp_path, staleness):
    """At random moments of the process's life: in its start, in a step, in a save, with verdicts under way."""
    flags = ("--config.steps=240", f"--config.rollout.staleness={staleness}")
    whole, workdir, chance = tmp_path / "whole", tmp_path / "run", random.Random(staleness)
    assert tiny.launch(whole, *flags).returncode == 0
    got = []
    for _ in range(20):
        process, target = tiny.start(workdir, *flags), tiny.lines(workdir) + chance.randrange(4)
        tiny.wait_until(lambda target=target: tiny.lines(workdir) >= target, [process])
        time.sleep(chance.uniform(0.0, 0.3))
        process.kill()
        tiny.finish(process)
        got.append(tiny.lines(workdir))
    assert got[-1] < tiny.WARM_STEPS + 240, f"it ended before the last kill: {got}"
    again = tiny.launch(workdir, *flags)
    assert again.returncode == 0, again.stderr
    assert tiny.outcome(workdir) == tiny.outcome(whole)


def test_sigterm_saves_and_says_so(tmp_path):
    workdir = tmp_path / "run"
    process = tiny.start(workdir)
    assert tiny.wait_until(lambda: tiny.lines(workdir) >= 5, [process])
    process.send_signal(signal.SIGTERM)
    output = tiny.finish(process)
    assert process.returncode == 0, output
    done = tiny.lines(workdir)
    assert f"stopped by a signal: saved at step {done} of 10; the same command resumes" in output
    assert "RESULT" not in output and "Traceback" not in output
    assert (workdir / "checkpoints" / str(done)).is_dir()
    again = tiny.launch(workdir)
    assert again.returncode == 0, again.stderr
    assert f"resuming at step {done} of 10" in again.stderr
    assert tiny.outcome(workdir) == tiny.outcome(tiny.reference_run())


def test_stopped_during_an_evaluation(tmp_path, monkeypatch):
    """The step is done by then: its line and its evaluation must come when the run is resumed."""
    whole = tiny.dense_run()
    with tiny.runs_in_process():
        config = tiny.make_config(moe=False)
        evaluate, calls = evaluation.evaluate, []

        def stopped(*arguments, **options):
            calls.append(1)
            if len(calls) in (2, 4):  # at RL step 3, and at the end; the first is the start's
                raise Interrupted
            return evaluate(*arguments, **options)

        monkeypatch.setattr(evaluation, "evaluate", stopped)
        assert trainer.train(config, tmp_path / "run") is None
        assert tiny.lines(tmp_path / "run") == 6
        assert trainer.train(config, tmp_path / "run") is None
        assert tiny.lines(tmp_path / "run") == 9
        assert trainer.train(config, tmp_path / "run") is not None
    assert tiny.outcome(tmp_path / "run") == tiny.outcome(whole)


def test_rollouts_of_the_step_before_survive_stops(tmp_path, monkeypatch):
    """What was sampled ahead is resumed as it was sampled, by parameters that are no longer there."""
    config = tiny.make_config(moe=True)
    config.rollout.staleness = 1
    left = []

    @contextlib.contextmanager
    def stop_signal():
        limit = left.pop(0) if left else 10**6
        calls = itertools.count()
        yield lambda: next(calls) >= limit

    monkeypatch.setattr(trainer, "stop_signal", stop_signal)
    with tiny.runs_in_process():
        trainer.train(config, tmp_path / "whole")
        # Before the warm start's end, while the first rollouts are sampled, in an evaluation or between steps.
        left[:] = [6, 14, 25, 26]
        while trainer.train(config, tmp_path / "run") is None:
            pass
    assert not left
    assert tiny.outcome(tmp_path / "run") == tiny.outcome(tmp_path / "whole")
    rl = tiny.read_metrics(tmp_path / "whole")[tiny.WARM_STEPS :]
    assert [row["rollout/staleness"] for row in rl] == [0] + [1] * (tiny.STEPS - 1)
    # The first two rollouts are the start policy's own; from the second on there is an update in between.
    fresh = tiny.read_metrics(tiny.reference_run())[tiny.WARM_STEPS :]
    assert rl[0]["rollout/tokens_mean"] == fresh[0]["rollout/tokens_mean"] and rl[0]["gap/max"] <= 5e-5
    assert all(row["gap/max"] > 1e-3 for row in rl[1:])


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(tmp_path):
    workdir = tmp_path / "run"
    before = tiny.outcome(tiny.reference_run())
    shutil.copytree(tiny.reference_run(), workdir)
    again = tiny.launch(workdir)
    assert again.returncode == 0, again.stderr
    assert "step 10/10" not in again.stdout
    assert tiny.outcome(workdir) == before


@pytest.mark.slow
def test_resumed_on_another_mesh(tmp_path):
    """Half on 4 devices that split the rows, half on 8 that also split parameters, experts and heads."""
    workdir = tmp_path / "run"
    process = tiny.start(workdir, "--config.mesh.data=4", devices=4)
    assert tiny.wait_until(lambda: tiny.lines(workdir) >= 7, [process])
    process.send_signal(signal.SIGTERM)
    output = tiny.finish(process)
    assert process.returncode == 0, output
    half = tiny.lines(workdir)
    assert half < 10
    shape = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.expert=2", "--config.mesh.tensor=2")
    again = tiny.launch(workdir, *shape, devices=8)
    assert again.returncode == 0, again.stderr
    assert f"resuming at step {half} of 10" in again.stderr
    rows, single = tiny.read_metrics(workdir), tiny.read_metrics(tiny.reference_run())
    assert [row["step"] for row in rows] == list(range(10))
    for row, other in zip(rows[: tiny.WARM_STEPS], single, strict=False):
        assert row["loss/supervised"] == pytest.approx(other["loss/supervised"], rel=1e-4)
    first, other = rows[tiny.WARM_STEPS], single[tiny.WARM_STEPS]
    assert first["reward/mean"] == pytest.approx(other["reward/mean"], abs=0.05)  # a sample on an edge may differ
    assert all(0 <= row["reward/mean"] <= 1 for row in rows[tiny.WARM_STEPS :])
    assert all(row["gap/max"] <= 5e-5 for row in rows[tiny.WARM_STEPS :])
    assert tiny.read_result(workdir)["config_hash"] == tiny.read_result(tiny.reference_run())["config_hash"]
