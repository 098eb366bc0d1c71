"""Runs of PPO with a critic: they learn, resume exactly, and leave policies that know nothing of it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from rlvr import trainer
from rlvr.algo.presets import preset
from rlvr.algo.value import ValueConfig
from rlvr.config import ExperimentConfig
from rlvr.learner.critic import CriticConfig
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.policy.transformer import Policy
from rlvr.policy_folder import load_params, load_policy
from tests import tiny

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes


@pytest.fixture(autouse=True, scope="module")
def runs_in_process() -> Iterator[None]:
    with tiny.runs_in_process():
        yield


def make_config(steps: int) -> ExperimentConfig:
    config = dataclasses.replace(tiny.make_config(moe=False), steps=steps)
    config.objective = preset("ppo", imitation_coef=0.1, value=ValueConfig(bootstrap=True))
    config.critic = CriticConfig(OptimizerConfig(learning_rate=3e-2), pretrain_steps=2)
    config.update.minibatches, config.update.epochs = 2, 2
    config.warm_start.steps = 2
    return config


def test_stopped_and_resumed_it_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(steps=4)
    run, left = tmp_path / "run", []

    @contextlib.contextmanager
    def stop_signal() -> Iterator[Callable[[], bool]]:
        condition, calls = left.pop(0) if left else (lambda asked: False), itertools.count()
        yield lambda: condition(next(calls))

    monkeypatch.setattr(trainer, "stop_signal", stop_signal)
    trainer.train(config, tmp_path / "whole")
    # Where the RL begins, among the steps of the critic alone, and after the first of the policy.
    left[:] = [lambda asked: asked >= 4, lambda asked: tiny.lines(run) >= 3, lambda asked: tiny.lines(run) >= 5]
    seen = []
    while trainer.train(config, run) is None:
        seen.append(tiny.lines(run))
    assert seen == [2, 3, 5]
    assert tiny.outcome(tmp_path / "run") == tiny.outcome(tmp_path / "whole")
    rl = tiny.read_metrics(tmp_path / "whole")[2:]
    assert [row["optimizer/lr"] > 0 for row in rl] == [False, False, True, True]
    assert rl[0]["value/mean"] == 0.0 and rl[1]["value/mean"] != 0.0
    # The critic's steps leave the policy: what is sampled next is sampled as it is trained on.
    assert all(row["gap/max"] <= 5e-5 for row in rl[:2]) and all(row["gap/max"] > 1e-4 for row in rl[2:])
    assert all(row["optimizer/critic_grad_norm"] > 0 and row["loss/imitation"] >= 0 for row in rl)


def test_it_learns_and_its_policy_has_no_critic(tmp_path: Path) -> None:
    config = make_config(steps=30)
    config.warm_start.steps = config.critic.pretrain_steps = 0
    config.objective.value.bootstrap = False
    config.optimizer = OptimizerConfig(learning_rate=2e-2)
    config.rollout.prompts, config.rollout.group_size, config.engine.slots = 8, 4, 32
    config.update.micro_tokens, config.update.minibatches = 256, 1
    config.evaluation.interval = config.checkpoints.interval = 30
    trainer.train(config, tmp_path)
    rows = tiny.read_metrics(tmp_path)
    rewards, explained = ([row.get(name, 0.0) for row in rows] for name in ("reward/mean", "value/explained_variance"))
    assert np.mean(rewards[:3]) < 0.1 and np.mean(rewards[-3:]) > 0.6
    # The value loss as a share of the returns' variance falls: the variance itself grows with the rewards.
    assert np.mean(explained[:4]) < 0 and np.mean(explained[-10:]) > 0.2
    assert (tmp_path / "checkpoints" / "30" / "critic").is_dir()
    wanted = jax.tree.structure(Policy(config.policy).abstract_params())
    assert jax.tree.structure(load_policy(tmp_path).params) == wanted
    assert jax.tree.structure(load_params(tmp_path / "start", config.policy, None)) == wanted
