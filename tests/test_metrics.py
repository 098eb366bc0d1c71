"""What is reported of samples that no verifier could score: they are counted, and are not wrong answers."""

import numpy as np
import pytest

from rlvr.evaluation import flatten, mean_accuracy, summarize
from rlvr.metrics import rollout_metrics
from rlvr.rollout.collect import Collected, Episode
from rlvr.rollout.config import EngineStats
from rlvr.types import Completion, Request, Task, Verdict
from rlvr.verifiers.base import make_failure

RIGHT = Verdict(1.0, "correct", parts={"strict": 1.0, "lenient": 1.0, "format": 1.0})
WRONG = Verdict(0.25, "wrong", parts={"strict": 0.25, "lenient": 1.0, "format": 0.5})
ERROR = make_failure("error", "no judge")


def collect(*verdicts):
    task = Task(0, "t", "", "", "exact")
    episodes = [
        Episode(
            task,
            Completion(Request(i, 0, i, (1,)), np.zeros(i + 1, np.int32), np.full(i + 1, -float(i)), "stop"),
            "",
            v,
        )
        for i, v in enumerate(verdicts)
    ]
    return Collected(episodes, 1.0, 0.0, EngineStats(tokens=6, row_steps=8))


def test_a_step():
    verdicts = (RIGHT, ERROR, WRONG, ERROR, ERROR, ERROR)  # three groups of two
    rewards, valid = np.array([1, 0, 0.25, 0, 0, 0.0]), np.array([v.score is not None for v in verdicts])
    metrics = rollout_metrics(collect(*verdicts), rewards, valid, group_size=2)
    assert metrics["reward/mean"] == 0.625
    assert (metrics["accuracy/strict"], metrics["accuracy/lenient"]) == (0.5, 1.0)
    assert metrics["part/format"] == 0.75 and "part/strict" not in metrics
    assert (metrics["groups/all_correct"], metrics["groups/all_wrong"]) == (pytest.approx(1 / 3),) * 2
    assert (metrics["rollout/tokens_mean_right"], metrics["rollout/tokens_mean_wrong"]) == (1, 3)
    assert metrics["rollout/surprisal"] == pytest.approx(70 / 21)  # i nats for each of the i + 1 tokens of sample i
    assert (metrics["verdict/error"], metrics["verify/masked"]) == (4, 4)
    nothing = rollout_metrics(collect(ERROR, ERROR), np.zeros(2), np.zeros(2, bool), group_size=2)
    assert "accuracy/strict" not in nothing and nothing["groups/all_wrong"] == 0


def test_flags_are_rates_over_the_audited_and_gold_stands_beside_the_reward():
    audited = [
        Verdict(
            1.0, "correct", parts={"strict": 1.0, "lenient": 1.0, "gold": 0.0, "audit/exits": 1.0, "audit/spam": 1.0}
        ),
        Verdict(
            1.0, "correct", parts={"strict": 1.0, "lenient": 1.0, "gold": 0.5, "audit/exits": 1.0, "audit/spam": 0.0}
        ),
        Verdict(
            0.0, "wrong", parts={"strict": 0.0, "lenient": 1.0, "gold": None, "audit/exits": 0.0, "audit/spam": 0.0}
        ),
    ]
    collected = collect(*audited, RIGHT)
    metrics = rollout_metrics(collected, np.array([1, 1, 0, 1.0]), np.ones(4, bool), group_size=2)
    wanted = {"audit/any": 2 / 3, "audit/exits": 2 / 3, "audit/spam": 1 / 3, "part/gold": 0.25, "part/format": 1.0}
    assert {name: value for name, value in metrics.items() if name.startswith(("audit/", "part/"))} == wanted
    assert metrics["accuracy/gap"] == 0.25
    result = summarize(collected.episodes)
    assert result["parts"] == wanted
    flat = flatten({"t": result})
    assert all(flat[f"eval/t/{name}"] == value for name, value in wanted.items())


def test_an_evaluation():
    result = summarize(collect(RIGHT, ERROR, WRONG, WRONG).episodes)
    assert (result["n"], result["unscorable"], result["statuses"]["error"]) == (3, 1, 1)
    assert (result["accuracy"], result["accuracy_lenient"], result["score"]) == (1 / 3, 1.0, 0.5)
    nothing = summarize(collect(ERROR, ERROR).episodes)
    assert [nothing[name] for name in ("accuracy", "accuracy_lenient", "interval", "score")] == [None] * 4
    assert flatten({"t": nothing}) == {"eval/t/n": 0, "eval/t/unscorable": 2, "eval/t/mean_tokens": 1.5}
    better = {**result, "accuracy": 0.5}
    both = flatten({"a": result, "b": better})
    assert (both["eval/accuracy_worst"], both["eval/accuracy_mean"]) == (1 / 3, pytest.approx(5 / 12))
    assert "eval/accuracy_worst" not in flatten({"a": result}) | flatten({"a": result, "t": nothing})
    assert mean_accuracy({"a": result}) == 1 / 3 and mean_accuracy({"a": result, "t": nothing}) is None
