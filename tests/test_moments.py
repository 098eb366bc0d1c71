"""A run whose moments rest in the host's memory is the same run, and may be resumed with or without it."""

import jax
import pytest

from rlvr import evaluation, trainer
from rlvr.checkpoint import Checkpoints
from rlvr.rollout.engine import Interrupted
from tests import tiny

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes


def test_a_run_goes_on_wherever_its_moments_rest(tmp_path, monkeypatch):
    """Stopped at the evaluations, resumed each time with the moments in the other memory."""
    whole, evaluate, calls, saved = tiny.dense_run(), evaluation.evaluate, [], []
    save = Checkpoints.save

    def stopped(*arguments, **options):
        calls.append(1)
        if len(calls) in (2, 4):
            raise Interrupted
        return evaluate(*arguments, **options)

    def noted(self, step, state, *rest, **more):
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}
        saved.append((step, kinds))
        save(self, step, state, *rest, **more)

    monkeypatch.setattr(evaluation, "evaluate", stopped)
    monkeypatch.setattr(Checkpoints, "save", noted)
    with tiny.runs_in_process():
        for memory, ended in (("host", False), ("device", False), ("host", True)):
            config = tiny.make_config(moe=False)
            config.update.moments = memory
            kind = {"host": "pinned_host", "device": "device"}[memory]
            assert (trainer.train(config, tmp_path / "run") is not None) == ended
            assert saved and all(kinds == {kind} for _, kinds in saved)
            saved.clear()
    assert tiny.outcome(tmp_path / "run") == tiny.outcome(whole)
