"""Dynamic sampling: what is kept, what it costs, what happens at the cap, and that a run of it resumes exactly."""

import contextlib
import itertools

import numpy as np
import pytest

from rlvr import config as configs
from rlvr import trainer
from rlvr.algo.lengths import LengthConfig
from rlvr.config import ExperimentConfig, RolloutConfig
from rlvr.curriculum import Curriculum
from rlvr.rollout.collect import Collected, Episode
from rlvr.rollout.config import EngineStats
from rlvr.rollouts import Rollouts
from rlvr.types import Completion, Request, Task, Verdict
from tests import tiny

VERDICTS = {
    "1": Verdict(1.0, "correct", parts={"strict": 1.0}),
    "0": Verdict(0.0, "wrong", parts={"strict": 0.0}),
    "h": Verdict(0.5, "wrong", parts={"strict": 0.5}),  # partly right is not right
    "e": Verdict(None, "error", parts={"strict": None}),  # masked
}


class Collector:
    """Gives the samples of task i the verdicts of the i-th word; sample s has s + 1 tokens."""

    def __init__(self, words):
        self.words, self.rounds = words, []

    def sample(self, params, tasks, key, *, samples, on_dispatch, **options):
        self.rounds.append([task.prompt_id for task in tasks])
        on_dispatch()
        episodes = [
            Episode(
                task,
                Completion(Request(0, task.prompt_id, s, (1,)), np.zeros(s + 1, np.int32), np.zeros(s + 1), "stop"),
                "",
                VERDICTS[self.words[task.prompt_id % len(self.words)][s]],
            )
            for task in tasks
            for s in range(samples)
        ]
        tokens = sum(len(e.completion.tokens) for e in episodes)
        self.collected = Collected(episodes, 1.0, 0.5, EngineStats(tokens=tokens, row_steps=2 * tokens, most_pages=3))
        return self

    def verify(self):
        return self.collected


class Stream:
    sources, weights = {"t": []}, {"t": 1.0}

    def __getitem__(self, index):
        return Task(index, "t", "", "", "exact")


def take(words, rl_step=0, rollouts=None, **changes):
    rollout = RolloutConfig(prompts=3, group_size=2, **{"dynamic_rounds": 4, **changes})
    config = ExperimentConfig(rollout=rollout)
    config.reward.length = LengthConfig(overlong_buffer=2)  # it shapes rewards, which must not matter
    collector = Collector(words.split())
    rollouts = rollouts or Rollouts(config, collector, Curriculum(config, Stream()))
    ends = []
    collected, metrics = rollouts.take(rl_step, {}, ends.append, on_dispatch=lambda: None, should_stop=lambda: False)
    used = [e.task.prompt_id for e in collected.episodes[::2]]
    return rollouts, collector, collected, metrics, used, ends


def position(rollouts):
    arrays, facts = rollouts.pending()
    assert arrays is None and facts["state"]["bandit"]["step"] == 1
    return facts["state"]["next"][0]


def test_rounds_go_on_until_enough_groups_are_mixed():
    rollouts, collector, collected, metrics, used, ends = take("11 10 00 hh ee 0h 01 10")
    assert collector.rounds == [[0, 1, 2], [3, 4], [5, 6], [7]]
    assert used == [1, 6, 7]  # 0h has two scores and none right, ee none at all
    assert ends == ["rollout", "verify_wait"] * 4
    told = {name.removeprefix("dynamic/"): value for name, value in metrics.items()}
    assert told == {
        "rollout/staleness": 0,
        "rounds": 4,
        "prompts": 8,
        "groups": 3,
        "surplus": 0,
        "all_right": 1,
        "all_wrong": 3,
        "unscorable": 1,
        "tokens_dropped": 15,
        "accuracy": pytest.approx(5 / 14),
    }
    assert collected.engine == EngineStats(tokens=24, row_steps=48, most_pages=3)
    assert (collected.decode_s, collected.verify_wait_s) == (4.0, 2.0)
    assert position(rollouts) == 8


def test_masked_samples_are_as_if_they_were_not_there():
    *_, used, _ = take("1e 0e 10 01 10")
    assert used == [2, 3, 4]


def test_the_first_drawn_are_taken_and_the_rest_is_surplus():
    """In the order in which they were submitted, which no completion's length can change."""
    rollouts, collector, _, metrics, used, _ = take("00 10 10 11 01 10", oversample=2.0)
    assert collector.rounds == [[0, 1, 2, 3, 4, 5]]
    assert used == [1, 2, 4] and metrics["dynamic/surplus"] == 1
    assert position(rollouts) == 6  # the next step goes on after all that were sampled


def test_the_cap(caplog):
    _, collector, _, metrics, used, _ = take("00 10 11", dynamic_rounds=2)
    assert collector.rounds == [[0, 1, 2], [3, 4]]
    assert used == [1, 4] and metrics["dynamic/groups"] == 2
    assert "2 of 3 groups have both right and wrong samples after 2 rounds: the update learns from 2" in caplog.text
    *_, metrics, used, _ = take("00 11", dynamic_rounds=1)
    assert used == [0] and metrics["dynamic/groups"] == 0 and metrics["dynamic/tokens_dropped"] == 9
    assert (
        "0 of 3 groups have both right and wrong samples after 1 rounds: the update has one that is all" in caplog.text
    )


@pytest.fixture
def in_process():
    with tiny.runs_in_process():
        yield


def make_config():
    config = tiny.make_config(moe=False)
    config.rollout.dynamic_rounds = 3
    config.update.minibatches = 2
    config.verifiers.workers = 1
    return config


def test_a_run_of_it_resumes_exactly(tmp_path, monkeypatch, in_process):
    config, left = make_config(), []

    @contextlib.contextmanager
    def stop_signal():
        limit = left.pop(0) if left else 10**6
        calls = itertools.count()
        yield lambda: next(calls) >= limit

    monkeypatch.setattr(trainer, "stop_signal", stop_signal)
    result = trainer.train(config, tmp_path / "whole")
    left[:] = [9, 18, 25, 33]  # in rounds, between steps and in evaluations
    stops = 0
    while trainer.train(config, tmp_path / "run") is None:
        stops += 1
    assert stops == 4
    assert tiny.outcome(tmp_path / "run") == tiny.outcome(tmp_path / "whole")
    rows = tiny.read_metrics(tmp_path / "whole")[tiny.WARM_STEPS :]
    assert {row["dynamic/rounds"] for row in rows} >= {3}
    assert any(0 < row["dynamic/groups"] < 4 for row in rows)
    for row in rows:
        assert row["dynamic/groups"] <= 4 and row["dynamic/prompts"] >= 4
        assert row["groups/all_correct"] == 0 or row["dynamic/groups"] == 0
        learned = row["rollout/tokens_mean"] * sum(row[f"verdict/{status}"] for status in ("correct", "wrong"))
        assert (
            row["rollout/tokens"] == pytest.approx(learned + row["dynamic/tokens_dropped"]) or not row["dynamic/groups"]
        )
    assert result["config_hash"] == configs.config_hash(config)
