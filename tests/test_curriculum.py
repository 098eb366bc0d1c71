"""Draws of tasks: arms in their own order, states that survive, what is learned of arms, and whole runs."""

import contextlib
import dataclasses
import itertools
import json

import numpy as np
import pytest

from rlvr import errors, trainer
from rlvr.algo.curriculum import CurriculumConfig
from rlvr.config import ExperimentConfig, RolloutConfig
from rlvr.curriculum import Curriculum
from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.data.pipeline import make_train_stream
from rlvr.rollout.collect import Collected, Episode
from rlvr.rollout.config import EngineStats
from rlvr.rollouts import Rollouts
from rlvr.types import Completion, Request, Verdict
from tests import tiny

SETS = {"sums": ("+", 30), "products": ("*", 20), "differences": ("-", 10)}


def make_config(prompts=6, dynamic_rounds=0, oversample=1.0, **changes):
    sets = tuple(
        TaskSetConfig(
            name=name, train_size=size, options={"operations": [operation]}, weight=1.0 + 2 * (name == "sums")
        )
        for name, (operation, size) in SETS.items()
    )
    rollout = RolloutConfig(prompts=prompts, group_size=4, dynamic_rounds=dynamic_rounds, oversample=oversample)
    config = ExperimentConfig(seed=7, steps=50, data=DataConfig(sets), rollout=rollout)
    config.curriculum = CurriculumConfig(**changes)
    config.curriculum.validate(dynamic_rounds > 0)
    return config


def make(**changes):
    config = make_config(**changes)
    return Curriculum(config, make_train_stream(config.data))


class Collector:
    """Gives a task set's samples a number of right ones by hand: {set: rights of its first prompt, second, ...}."""

    def __init__(self, rights):
        self.rights = {name: itertools.cycle(own) for name, own in rights.items()}

    def sample(self, params, tasks, key, *, samples, **options):
        episodes = []
        for task in tasks:
            right = next(self.rights[task.task])
            for s in range(samples):
                score = float(s < right)
                verdict = Verdict(score, "correct" if score else "wrong", parts={"strict": score})
                completion = Completion(Request(0, task.prompt_id, s, (1,)), np.zeros(2), np.zeros(2), "stop")
                episodes.append(Episode(task, completion, "", verdict))
        self.collected = Collected(episodes, 1.0, 0.0, EngineStats(tokens=2 * len(episodes)))
        return self

    def verify(self):
        return self.collected


def run(steps, rights, rollouts=None, **changes):
    """Returns (the rollouts, the metrics of each step, the task sets that each step learned from)."""
    config = make_config(**changes)
    collector = Collector(rights)
    rollouts = rollouts or Rollouts(config, collector, Curriculum(config, make_train_stream(config.data)))
    metrics, names = [], []
    for step in range(steps):
        collected, told = rollouts.take(step, {}, lambda part: None)
        metrics.append(told)
        names.append([e.task.task for e in collected.episodes[::4]])
    return rollouts, metrics, names


def only(name):
    """Options with which no other task set is ever open."""
    return {"stages": (name, *(other for other in SETS if other != name)), "stage_steps": 99}


def test_the_mixture_is_the_stream():
    config = make_config()
    config.warm_start.steps, config.warm_start.rows = 2, 5
    stream = make_train_stream(config.data)
    curriculum = Curriculum(config, stream)
    picks, state = curriculum.draw(curriculum.start(), 6, 0)
    assert curriculum.tasks(picks) == stream.batch(10, 6)
    assert curriculum.tasks(curriculum.draw(state, 6, 1)[0]) == stream.batch(16, 6)


def test_element_i_of_an_arm_is_the_same_whatever_else_is_drawn():
    drawn = {}
    for sampler in ("uniform", "weights"):
        curriculum = make(sampler=sampler)
        stream, state = make_train_stream(make_config().data), curriculum.start()
        counts = dict.fromkeys(curriculum.names, 0)
        for step in range(20):
            picks, state = curriculum.draw(json.loads(json.dumps(state)), 6, step)
            for (arm, index), task in zip(picks, curriculum.tasks(picks), strict=True):
                name = curriculum.names[arm]
                assert task.task == name and index == counts[name]
                assert task == stream.part(name, stream.sources[name])[index]
                counts[name] += 1
        assert state["next"] == list(counts.values())
        drawn[sampler] = np.array(list(counts.values())) / 120
    assert drawn["uniform"] == pytest.approx([1 / 3] * 3, abs=0.12)
    assert drawn["weights"] == pytest.approx([0.6, 0.2, 0.2], abs=0.12)


def test_draws_depend_on_seed_step_and_round_only():
    curriculum = make(sampler="uniform", prompts=20)
    state = curriculum.start()
    first = curriculum.draw(state, 20, 3)[0]
    assert first == curriculum.draw(state, 20, 3)[0]
    assert [arm for arm, _ in first] != [arm for arm, _ in curriculum.draw(state, 20, 4)[0]]
    assert [arm for arm, _ in first] != [arm for arm, _ in curriculum.draw(state, 20, 3, 1)[0]]


def test_sec_learns_where_there_is_something_to_learn():
    rights = {"sums": [4], "products": [2], "differences": [0]}
    _, metrics, names = run(12, rights, sampler="sec", min_probability=0.05, prompts=12)
    late = list(itertools.chain(*names[6:]))
    assert late.count("products") / len(late) > 0.7
    last = metrics[-1]
    assert sum(last[f"curriculum/share/{name}"] for name in SETS) == pytest.approx(1)
    assert sum(last[f"curriculum/target/{name}"] for name in SETS) == pytest.approx(1)
    assert last["curriculum/target/sums"] >= 0.05
    assert (last["curriculum/value/products"], last["curriculum/value/sums"]) == (1.0, 0.0)
    assert {metrics[0].get(f"curriculum/accuracy/{name}") for name in SETS} == {1.0, 0.5, 0.0}


@pytest.mark.parametrize(
    ("signal", "value"), [("accuracy", 0.5), ("variance", 0.875), ("abs_advantage", 0.933), ("progress", 0.0)]
)
def test_signals_of_groups(signal, value):
    """Groups with 2, 3 and 1 of 4 right: mean of p, of 4 p (1 - p), of 2 sqrt(p (1 - p)); no progress at first."""
    rights = {"sums": [2, 3, 1, 2, 3, 1], "products": [2, 3, 1], "differences": [2, 3, 1]}
    curriculum = {
        "sampler": "sec",
        "signal": signal,
    }
    rollouts, _, _ = run(1, rights, **curriculum, **only("sums"))
    mean = {"variance": (1 + 0.75 + 0.75) / 3, "abs_advantage": (1 + 3**0.5) / 3}.get(signal, value)
    assert rollouts.pending()[1]["state"]["bandit"]["value"] == [pytest.approx(mean), None, None]


def test_progress_is_the_change_of_what_was_known():
    rights = {"sums": [1] * 6 + [3] * 6, "products": [0], "differences": [0]}
    rollouts, _, _ = run(2, rights, sampler="sec", signal="progress", step_size=1.0, **only("sums"))
    assert rollouts.pending()[1]["state"]["bandit"]["value"][0] == pytest.approx(0.5)


def test_shares_are_kept_although_rates_are_unequal():
    """Three of four groups of products are flat: the shares of what is learned from are those that were drawn."""
    rights = {"sums": [1, 2, 3], "products": [0, 4, 0, 2], "differences": [2, 1]}
    shares = {}
    for keep in (False, True):
        options = {"sampler": "uniform", "dynamic_rounds": 10, "prompts": 12, "keep_shares": keep, "oversample": 3.0}
        _, metrics, names = run(10, rights, **options)
        assert all(len(own) == 12 for own in names)
        shares[keep] = np.mean([row["curriculum/share/products"] for row in metrics])
        assert all(row["curriculum/target/products"] == pytest.approx(1 / 3) for row in metrics)
    assert shares[False] < 0.22
    assert shares[True] == pytest.approx(1 / 3, abs=0.1)
    early, late = metrics[0]["dynamic/rounds"], metrics[-1]["dynamic/rounds"]
    assert early > late or late == 1  # once the rates are known, rounds are larger


def test_what_is_missing_at_the_cap_is_filled_from_other_tasks():
    rights = {"sums": [2], "products": [0], "differences": [4]}
    options = {"sampler": "uniform", "dynamic_rounds": 2, "prompts": 12, "keep_shares": True, "oversample": 3.0}
    _, metrics, names = run(1, rights, **options)
    assert set(names[0]) == {"sums"} and metrics[0]["dynamic/rounds"] == 2


def test_multitask_grpo_draws_the_worst_task_more():
    rights = {"sums": [3], "products": [1], "differences": [3]}
    options = {"sampler": "multitask_grpo", "learning_rate": 0.2, "dynamic_rounds": 3, "keep_shares": True}
    _, metrics, _ = run(15, rights, prompts=12, **options)
    targets = [metrics[-1][f"curriculum/target/{name}"] for name in SETS]
    assert targets[1] > 0.6 and targets[0] == pytest.approx(targets[2])


def test_stages_open_and_are_logged():
    stages = {"stages": ("sums", "products", "differences"), "stage_accuracy": 0.7, "stage_steps": 3}
    rights = {"sums": [1] * 6 + [4] * 1000, "products": [0], "differences": [0]}
    _, metrics, names = run(8, rights, sampler="uniform", step_size=0.5, **stages)
    assert [row["curriculum/stage"] for row in metrics] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert [set(own) for own in names[:3]] == [{"sums"}] * 3
    assert set(itertools.chain(*names[3:6])) == {"sums", "products"}
    assert "differences" in itertools.chain(*names[6:])
    assert metrics[0]["curriculum/target/products"] == 0


def test_known_prompts_are_retired_and_come_back_when_all_are():
    rights = {"sums": [4], "products": [3], "differences": [0]}
    rollouts, metrics, names = run(3, rights, prompts=12, retire_at=0.9)
    state = rollouts.pending()[1]["state"]
    drawn = np.cumsum([own.count("sums") for own in names])
    assert [row["curriculum/retired"] for row in metrics] == list(drawn) and drawn[-1] > 15
    (retired,) = state["retired"]
    curriculum = make(prompts=12, retire_at=0.9)
    picks, after = curriculum.draw(json.loads(json.dumps(state)), 80, 5)
    assert not {task.prompt_id for task in curriculum.tasks(picks)} & set(retired)
    assert after["next"][0] - state["next"][0] > 80
    # All of ten prompts are known at once: they all come again.
    _, metrics, _ = run(2, {"differences": [4]}, prompts=10, sampler="uniform", retire_at=1.0, **only("differences"))
    assert [row["curriculum/retired"] for row in metrics] == [0, 0]


def test_mopps_draws_prompts_once_a_step_and_leaves_those_that_are_known():
    options = {"sampler": "mopps", "arm": "prompt", "prompts": 20}
    rights = {"sums": [4], "products": [2], "differences": [0]}
    rollouts, _, names = run(30, rights, **options)
    late = list(itertools.chain(*names[20:]))
    assert late.count("products") / len(late) > 0.75
    state = rollouts.pending()[1]["state"]
    assert json.loads(json.dumps(state)) == state
    known = [pair for key, pair in state["prompts"].items() if int(key) < 30]
    assert all(beta == 1 and alpha > 1 for alpha, beta in known)  # the sums: never a wrong one
    curriculum = make(**options)
    first, _ = curriculum.draw(state, 20, 31)
    second, _ = curriculum.draw(state, 50, 31, 1, first)
    assert len({*first, *second}) == 60  # all prompts there are, each once
    with pytest.raises(errors.ConfigError, match=r"rollout\.prompts=61 is more than the 60 training problems"):
        make(**{**options, "prompts": 61})


def test_arms_that_do_not_fit_are_refused():
    with pytest.raises(errors.ConfigError, match=r"min_probability=0\.5 for each of 3 arms"):
        make(sampler="sec", min_probability=0.5)
    with pytest.raises(errors.ConfigError, match=r"stages\[0\]='sum'.*did you mean 'sums'"):
        make(sampler="sec", stages=("sum",), stage_steps=1)
    config = make_config(sampler="sec")
    config.data = dataclasses.replace(config.data, tasks=config.data.tasks[:1])
    with pytest.raises(errors.ConfigError, match=r"'sec' draws between arms, but .*arm='task' there is one, 'sums'"):
        Curriculum(config, make_train_stream(config.data))


@pytest.fixture
def in_process():
    with tiny.runs_in_process():
        yield


def make_tiny(name):
    """The tiny run on two task sets; what is right is a completion of digits only."""
    config = dataclasses.replace(tiny.make_config(moe=False), sample_interval=100)
    (whole,) = config.data.tasks
    half = dataclasses.replace(whole, name="half", train_size=10, eval_size=0)
    config.data = DataConfig((whole, half))
    shared = {"min_probability": 0.1, "discount": 0.9, "signal": "variance"}
    if name == "ahead":
        config.rollout.staleness = 1
        config.curriculum = CurriculumConfig(sampler="exp3", learning_rate=1.0, retire_at=0.9, **shared)
    elif name == "rounds":
        config.rollout.dynamic_rounds, config.rollout.oversample = 3, 2.0
        config.curriculum = CurriculumConfig(sampler="multitask_grpo", keep_shares=True, **shared)
    else:
        config.rollout.dynamic_rounds = 2
        config.curriculum = CurriculumConfig(sampler="mopps", arm="prompt", discount=0.5)
    return config


@pytest.mark.parametrize("name", ["ahead", "rounds", "prompts"])
def test_a_run_stopped_and_resumed_equals_the_uninterrupted_one(tmp_path, monkeypatch, in_process, name):
    config, left, stops = make_tiny(name), [], 0

    @contextlib.contextmanager
    def stop_signal():
        limit = left.pop(0) if left else 10**6
        calls = itertools.count()
        yield lambda: next(calls) >= limit

    monkeypatch.setattr(trainer, "stop_signal", stop_signal)
    trainer.train(config, tmp_path / "whole")
    left[:] = [11, 17, 23]
    while trainer.train(config, tmp_path / "run") is None:
        stops += 1
    assert stops == 3
    assert tiny.outcome(tmp_path / "run") == tiny.outcome(tmp_path / "whole")
    rows = tiny.read_metrics(tmp_path / "whole")[tiny.WARM_STEPS :]
    if name != "prompts":
        assert len({row["curriculum/target/sums"] for row in rows}) > 2
        assert all(row["curriculum/share/sums"] + row["curriculum/share/half"] in (0, pytest.approx(1)) for row in rows)
