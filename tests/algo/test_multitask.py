"""Multi-Task GRPO: the update of the weights, and the shares of what is learned from, by hand."""

import json

import numpy as np
import pytest

from rlvr.algo.multitask import fill, plan_round, select, start, update

OPTIONS = {"level": 0.5, "clip": 0.1, "learning_rate": 0.02}
ALL = np.ones(3, bool)


def weights(state):
    powers = np.exp(state["logits"])
    return powers / powers.sum()


def test_two_steps_by_hand():
    first = update(start(3), np.array([0.9, 0.6, 0.3]), ALL, **OPTIONS)
    # No improvement yet: s = 0.45, 0.3, 0.15, g = (s - 0.3) / 3 = 0.05, 0, -0.05; Adam's first step has length 1.
    assert first["logits"] == pytest.approx([-0.02, 0.0, 0.02], abs=1e-7)
    assert first["rewards"] == [0.9, 0.6, 0.3]
    assert first["first"] == pytest.approx([0.005, 0, -0.005])
    second = update(json.loads(json.dumps(first)), np.array([0.9, 0.9, 0.25]), np.array([True, True, False]), **OPTIONS)
    z = weights(first)
    s = np.array([0.45, 0.1 + 0.45, 0.15])  # the second improved by 0.3, clipped; the third was not seen
    g = z * (s - z @ s)
    m, v = 0.9 * np.array([0.005, 0, -0.005]) + 0.1 * g, 0.999 * np.array([2.5e-6, 0, 2.5e-6]) + 0.001 * g**2
    step = (m / (1 - 0.81)) / (np.sqrt(v / (1 - 0.999**2)) + 1e-8)
    logits = np.array(first["logits"])
    assert second["logits"] == pytest.approx(logits - 0.02 * (step + 1e-5 * logits), abs=1e-9)
    assert second["rewards"] == [0.9, 0.9, 0.3] and second["updates"] == 2


def test_the_worst_task_gains_weight_and_equal_ones_share():
    state = start(3)
    for _ in range(200):
        state = update(state, np.array([0.9, 0.2, 0.9]), ALL, **OPTIONS)
    assert weights(state)[1] > 0.9 and weights(state)[0] == pytest.approx(weights(state)[2])


def test_a_task_that_was_never_seen_gains_nothing():
    state = start(3)
    for _ in range(50):
        state = update(state, np.array([0.5, 0.3, 0.0]), np.array([True, True, False]), **OPTIONS)
    assert state["rewards"][2] is None and state["first"][2] == pytest.approx(0, abs=1e-12)
    assert state["logits"][2] == pytest.approx(0, abs=1e-6)
    assert weights(state)[1] > weights(state)[2] > weights(state)[0]


def test_a_task_that_improves_loses_weight_where_levels_do_not_count():
    state, reward = start(3), np.array([0.2, 0.2, 0.2])
    for _ in range(10):
        reward = reward + [0.05, 0, 0]
        state = update(state, reward, ALL, level=0.0, clip=0.1, learning_rate=0.02)
    assert weights(state)[0] < 0.32 and weights(state)[1] > 0.33


def test_a_round_samples_by_the_rates():
    flat = np.array([0.0, 0.5, 0.75, 1.0])
    assert plan_round(np.array([4, 4, 2, 1]), flat, 10.0) == [4, 8, 8, 5]  # at most 5 for each
    assert plan_round(np.array([4, 4, 2, 1]), flat, 1.0) == [4, 4, 2, 1]
    assert plan_round(np.array([4, 4, 0, 0]), flat, 1.25) == [4, 6, 0, 0]  # 2 of the 4 more that it would take
    assert sum(plan_round(np.array([3, 5, 2, 1]), flat, 2.0)) <= 22


def test_groups_are_taken_by_quota_then_filled():
    arms, mixed = [0, 0, 0, 1, 1, 2, 0], [True, True, True, False, True, False, True]
    assert select(arms, mixed, None, 3) == [0, 1, 2]
    assert select(arms, mixed, [2, 1, 1], 4) == [0, 1, 4]
    assert fill([0, 1, 4], mixed, 4) == [0, 1, 2, 4]
    assert fill([0, 1, 4], mixed, 9) == [0, 1, 2, 4, 6]
    assert fill([0, 1, 4], mixed, 3) == [0, 1, 4]
