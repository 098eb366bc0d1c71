"""Checkpoints: kept, damaged, refused by a full disk."""

import dataclasses
import errno
import logging
import os
import shutil
import subprocess

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rlvr import checkpoint, errors, evaluation, partition, trainer
from rlvr.checkpoint import CheckpointConfig, Checkpoints
from rlvr.learner.optimizer import OptimizerConfig, make_optimizer
from rlvr.learner.state import abstract_state, fresh_state
from rlvr.learner.trainable import all_parameters
from rlvr.mesh import MeshConfig, make_mesh
from rlvr.policy.transformer import Policy
from rlvr.rollout.engine import Interrupted
from tests import tiny

CONFIG = tiny.make_config().policy

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes


@pytest.fixture(autouse=True, scope="module")
def runs_in_process():
    with tiny.runs_in_process():
        yield


@pytest.fixture(scope="module")
def setting():
    """(state, its abstract form on the mesh of 8 devices)."""
    mesh, policy = make_mesh(MeshConfig(data=2, expert=2, tensor=2)), Policy(CONFIG)
    optimizer = make_optimizer(OptimizerConfig(), 1)
    with jax.set_mesh(mesh):
        shardings = partition.shardings(mesh, policy.logical_axes())
        params = jax.jit(policy.init, out_shardings=shardings)(jax.random.key(0))
        trainable = all_parameters(policy)
        return fresh_state(trainable, optimizer, params, mesh), abstract_state(trainable, optimizer, mesh)


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def steps_on_disk(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def shifted(state, by):
    return state._replace(params=jax.tree.map(lambda x: x + by, state.params))


def saved_at(folder, state, *steps):
    """Saves the state at each step, its parameters shifted by the step."""
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=3))
    for step in steps:
        checkpoints.save(step, shifted(state, step), {"step": step})
    checkpoints.close()


def test_round_trip_on_a_mesh(tmp_path, setting):
    state, abstract = setting
    saved_at(tmp_path, state, 1, 2)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    restored = checkpoints.restore(lambda step: abstract)
    checkpoints.close()
    assert (restored.step, restored.run) == (2, {"step": 2})
    assert_same(restored.state, shifted(state, 2))
    table = restored.state.params["embed"]["table"]
    assert table.sharding == abstract.params["embed"]["table"].sharding and not table.is_fully_replicated


def test_nothing_to_restore(tmp_path, setting):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    assert checkpoints.restore(lambda step: setting[1]) is None
    checkpoints.close()


@pytest.mark.parametrize(("keep", "best", "left"), [(2, 1, [2, 5, 6]), (1, 0, [6]), (3, 2, [2, 3, 4, 5, 6])])
def test_the_last_and_the_best_are_kept(tmp_path, setting, keep, best, left):
    config = CheckpointConfig(keep=keep, keep_best=best)
    checkpoints = Checkpoints(tmp_path, config)
    for step, accuracy in enumerate((0.1, 0.9, 0.5, None, 0.2, None), 1):
        checkpoints.save(step, setting[0], {}, accuracy)
        if step == 3:  # a resumed run knows the best of before
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path, config)
    checkpoints.close()
    assert steps_on_disk(tmp_path) == left


def data_files(folder):
    """The files that hold the values of a saved tree."""
    return [p for p in folder.rglob("*") if p.is_file() and p.parent.name == "d"]


def truncate(item, folder):
    for path in data_files(folder / item):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(item, folder):
    for path in data_files(folder / item):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)


def delete(item, folder):
    for path in data_files(folder / item):
        path.unlink()


def corrupt_json(item, folder):
    (path,) = (folder / item).glob("metadata")
    path.write_text('{"step": ')


DAMAGES = [
    (truncate, "params"),
    (truncate, "opt_state"),
    (flip, "params"),
    (delete, "params"),
    (delete, "opt_state"),
    (corrupt_json, "run"),
    (lambda item, folder: shutil.rmtree(folder / item), "opt_state"),
]


@pytest.mark.parametrize(("damage", "item"), DAMAGES, ids=lambda x: getattr(x, "__name__", x))
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, setting, caplog, damage, item):
    state, abstract = setting
    saved_at(tmp_path, state, 2, 4)
    damage(item, tmp_path / "checkpoints" / "4")
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    restored = checkpoints.restore(lambda step: abstract)
    assert restored.step == 2
    assert_same(restored.state, shifted(state, 2))
    assert "checkpoint 4 cannot be read" in caplog.text and "trying the one before" in caplog.text
    # The step can be saved again, and the damaged one is there to be looked at.
    checkpoints.save(4, shifted(state, 4), {"again": True})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    restored = checkpoints.restore(lambda step: abstract)
    checkpoints.close()
    assert (restored.step, restored.run) == (4, {"again": True})
    assert (tmp_path / "checkpoints" / "damaged-4").is_dir()


def test_all_damaged_is_an_error_every_time(tmp_path, setting):
    """Neither the first try nor the next may begin the run anew over what is left of it."""
    saved_at(tmp_path, setting[0], 2, 4)
    for step in (2, 4):
        truncate("params", tmp_path / "checkpoints" / str(step))
    for _ in range(2):
        checkpoints = Checkpoints(tmp_path, CheckpointConfig())
        with pytest.raises(errors.WeightsError, match=r"none of the checkpoints \[4, 2\] in .* can be read"):
            checkpoints.restore(lambda step: setting[1])
        checkpoints.close()


def test_a_run_goes_on_from_the_one_before(tmp_path):
    """The whole run: its newest checkpoint is cut short, and it ends as it would have."""
    workdir = tmp_path / "run"
    shutil.copytree(tiny.reference_run(), workdir)
    (workdir / "result.json").unlink()
    truncate("opt_state", workdir / "checkpoints" / "10")
    done = tiny.launch(workdir)
    assert done.returncode == 0, done.stderr
    assert "checkpoint 10 cannot be read" in done.stderr and "resuming at step 8 of 10" in done.stderr
    assert tiny.outcome(workdir) == tiny.outcome(tiny.reference_run())


@pytest.mark.parametrize("where", ["starting", "writing"])
def test_a_full_disk_while_saving(tmp_path, setting, monkeypatch, caplog, where):
    """The failure comes at once, or from the thread that writes; a part of the checkpoint is on the disk by then."""
    state, abstract = setting
    full = OSError(errno.ENOSPC, "No space left on device")
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, shifted(state, 1), {})
    checkpoints.wait()

    def fail(*arguments, **options):
        (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
        raise full

    with monkeypatch.context() as patch:
        if where == "starting":
            patch.setattr(ocp.CheckpointManager, "save", fail)
        else:
            patch.setattr(ocp.CheckpointManager, "save", lambda *arguments, **options: None)
            patch.setattr(ocp.CheckpointManager, "wait_until_finished", fail)
        checkpoints.save(2, shifted(state, 2), {})
        checkpoints.wait()
    assert checkpoints.failed_saves == 1
    assert "checkpoint 2 could not be saved (OSError: [Errno 28] No space left on device)" in caplog.text
    assert "the run goes on, the last good checkpoint is 1" in caplog.text
    assert [path.name for path in (tmp_path / "checkpoints").glob("2*")] == []
    assert checkpoints.restore(lambda step: abstract).step == 1
    checkpoints.save(3, shifted(state, 3), {})
    checkpoints.close()
    assert steps_on_disk(tmp_path) == [1, 3]
    assert checkpoints.failed_saves == 1


@pytest.fixture
def small_disk(tmp_path):
    """A workdir whose checkpoints lie on a file system of their own; (workdir, function that resizes it in KiB)."""
    mounted = tmp_path / "run" / "checkpoints"
    mounted.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", mounted], capture_output=True).returncode:
        pytest.skip("mounting is not permitted")

    def resize(kib):
        subprocess.run(["mount", "-o", f"remount,size={kib}k", mounted], check=True)

    yield tmp_path / "run", resize
    subprocess.run(["umount", "-l", mounted], check=True)


def test_a_disk_that_is_really_full(small_disk, monkeypatch, caplog):
    """It fills up in the RL; the run ends all the same, and what was saved before can be restored."""
    workdir, resize = small_disk
    config = tiny.make_config(moe=False)
    config.evaluation.interval = 100
    used = []

    class Filling(Checkpoints):
        def save(self, step, *arguments, **options):
            if step == 6:
                self.wait()
                disk = os.statvfs(self._folder)
                used.append(sorted(int(p.name) for p in self._folder.iterdir()))
                resize((disk.f_blocks - disk.f_bfree) * disk.f_frsize // 1024 + 16)
            super().save(step, *arguments, **options)

    monkeypatch.setattr(checkpoint, "Checkpoints", Filling)
    monkeypatch.setattr(trainer, "Checkpoints", Filling)
    with caplog.at_level(logging.WARNING):
        result = trainer.train(config, workdir)
    assert used == [[2, 4]]
    assert result["failed_saves"] == 3  # at 6, 8 and 10
    assert tiny.lines(workdir) == 10
    assert "checkpoint 6 could not be saved" in caplog.text
    assert "the run goes on, the last good checkpoint is 4" in caplog.text
    assert steps_on_disk(workdir) == [2, 4]
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    monkeypatch.undo()
    resize(64 * 1024)
    caplog.clear()
    again = trainer.train(config, workdir)
    assert "resuming at step 4 of 10" in caplog.text
    assert again["failed_saves"] == 0
    for name in ("params_sha256", "rollout_sha256", "eval"):
        assert again[name] == result[name]


def test_a_stop_in_an_evaluation_costs_neither_a_line_nor_the_accuracy(tmp_path, monkeypatch):
    """Stopped in the evaluation, then killed while that step's checkpoint is replaced by one with its accuracy."""
    config = dataclasses.replace(tiny.make_config(moe=False), steps=4)
    config.warm_start.steps, config.evaluation.interval, config.checkpoints.interval = 0, 3, 50
    evaluate, wait = evaluation.evaluate, checkpoint.Checkpoints.wait

    class Killed(BaseException):
        pass

    def stop(*arguments, **options):
        if tiny.lines(tmp_path / "run") == 2:
            raise Interrupted
        return evaluate(*arguments, **options)

    def interrupt(*arguments, **options):
        raise Interrupted

    def kill(self):
        if self._pending == 3:
            raise Killed
        wait(self)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", stop)
        assert trainer.train(config, tmp_path / "run") is None
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "wait", kill)
        with pytest.raises(Killed):
            trainer.train(config, tmp_path / "run")
    # Killed a moment earlier: the new one was not whole.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "3", ignore_errors=True)
    assert (tmp_path / "run" / "checkpoints" / "replaced-3").is_dir()
    with monkeypatch.context() as patch:  # stopped right after the accuracy is saved
        patch.setattr(trainer.Rollouts, "take", interrupt)
        assert trainer.train(config, tmp_path / "run") is None
    ended = trainer.train(config, tmp_path / "run")
    assert [row["step"] for row in tiny.read_metrics(tmp_path / "run")] == [0, 1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["3", "4"]
    assert "accuracy" in (tmp_path / "run" / "checkpoints" / "3" / "metrics" / "metrics").read_text()
    whole = trainer.train(config, tmp_path / "whole")
    assert (ended["params_sha256"], ended["eval"]) == (whole["params_sha256"], whole["eval"])
