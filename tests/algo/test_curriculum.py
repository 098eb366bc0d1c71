"""Bandits over arms: probabilities, floors, updates by hand, and arms that change."""

import json

import numpy as np
import pytest

from rlvr import errors
from rlvr.algo.curriculum import (
    CHOICES,
    PROBABILITIES,
    CurriculumConfig,
    Feedback,
    choose_arms,
    choose_prompts,
    compute_probabilities,
    estimate_gains,
    invert,
    observe,
    start,
    update_counts,
)

WEIGHTS = np.array([1.0, 2.0, 1.0])
BANDITS = ("epsilon_greedy", "ucb", "thompson", "exp3", "sec")


def give(signal, groups=(4, 4, 4), right=None, wrong=None, mixed=(2, 2, 2)):
    """Feedback of arms whose accuracy is their signal unless told otherwise, of 10 samples a group."""
    groups, signal = np.array(groups, float), np.array(signal, float)
    right = signal * groups * 10 if right is None else np.array(right, float)
    wrong = groups * 10 - right if wrong is None else np.array(wrong, float)
    return Feedback(groups, np.array(mixed, float), right, wrong, signal)


def seen(config, *feedback, arms=3):
    state = start(arms)
    for each in feedback:
        drawn = compute_probabilities(config, state, np.ones(arms))
        state = json.loads(json.dumps(observe(config, state, each, drawn)))
    return state


def options(sampler, **changes):
    signal = "accuracy" if sampler == "thompson" else "abs_advantage"
    return CurriculumConfig(**{"sampler": sampler, "signal": signal, "learning_rate": 1.0, **changes})


@pytest.mark.parametrize("sampler", PROBABILITIES)
@pytest.mark.parametrize("floor", [0.0, 0.1, 1 / 3])
def test_probabilities_sum_to_one_and_keep_the_floor(sampler, floor):
    config = options(sampler, min_probability=floor, learning_rate=30.0, temperature=0.01)
    for state in (start(3), seen(config, give([0.0, 1.0, 0.0]), give([0.0, 1.0, 0.2]))):
        for weights in (WEIGHTS, np.array([1.0, 0.0, 1.0])):
            p = compute_probabilities(config, state, weights)
            assert p.sum() == pytest.approx(1, abs=1e-12)
            assert p[weights > 0].min() >= floor - 1e-12
            assert (p[weights == 0] == 0).all()


@pytest.mark.parametrize("sampler", CHOICES)
def test_those_without_probabilities_keep_the_floor_too(sampler):
    config = options(sampler, min_probability=0.1, bonus=0.01)
    state = seen(config, *[give([0.9, 0.1, 0.1], groups=(50, 50, 50))] * 20)
    for weights, least in ((np.ones(3), 0.1), (np.array([1.0, 0.0, 1.0]), 0.1)):
        arms = choose_arms(config, state, weights, np.random.default_rng(0).random((4000, 4)))
        shares = np.bincount(arms, minlength=3) / 4000
        wanted = np.where(weights > 0, least, 0.0) + [1 - least * (weights > 0).sum(), 0, 0]
        assert shares == pytest.approx(wanted, abs=0.02)


def test_a_floor_above_an_even_share_is_refused():
    with pytest.raises(
        errors.ConfigError, match=r"min_probability=0\.4 for each of 3 arms is more than 1: at most 0\.333"
    ):
        compute_probabilities(options("sec", min_probability=0.4), start(3), WEIGHTS)


@pytest.mark.parametrize("sampler", [*PROBABILITIES, *CHOICES])
def test_the_warm_up_is_even(sampler):
    config = options(sampler, warmup_steps=2)
    state = seen(config, give([0.0, 1.0, 0.5]))
    assert compute_probabilities(config, state, np.array([5.0, 0.0, 1.0])) == pytest.approx([0.5, 0, 0.5])
    late = observe(config, state, give([0.0, 1.0, 0.5]), [1 / 3] * 3)
    assert sampler == "uniform" or compute_probabilities(config, late, WEIGHTS) != pytest.approx([1 / 3] * 3)


def test_fixed_shares():
    assert compute_probabilities(options("uniform"), start(3), WEIGHTS) == pytest.approx([1 / 3] * 3)
    assert compute_probabilities(options("weights"), start(3), WEIGHTS) == pytest.approx([0.25, 0.5, 0.25])


def test_draws_are_multinomial():
    p = np.array([0.5, 0.0, 0.3, 0.2, 0.0])
    uniforms = np.random.default_rng(1).random(20000)
    counts = np.bincount(invert(p, uniforms), minlength=5)
    assert counts[[1, 4]].sum() == 0
    assert counts / 20000 == pytest.approx(p, abs=0.012)
    assert invert(p, np.array([0.0, 0.4999, 0.5, 0.7999, 0.8, 1 - 1e-16])) == [0, 0, 2, 2, 3, 3]


def test_sec_by_hand():
    config = options("sec", step_size=0.5, temperature=0.2)
    state = seen(config, give([0.8, 0.4, 0.7], groups=(4, 4, 0)), give([0.4, 0.9, 0.1], groups=(4, 0, 2)))
    assert state["value"] == pytest.approx([0.6, 0.4, 0.1])  # the first is taken as it is
    wanted = np.exp([3.0, 2.0, 0.5])
    assert compute_probabilities(config, state, WEIGHTS) == pytest.approx(wanted / wanted.sum())


def test_epsilon_greedy_by_hand():
    config = options("epsilon_greedy", epsilon=0.3)
    assert compute_probabilities(config, start(3), WEIGHTS) == pytest.approx([1 / 3] * 3)
    state = seen(config, give([0.2, 0.9, 0.0], groups=(1, 1, 0)))
    assert compute_probabilities(config, state, WEIGHTS) == pytest.approx([0.1, 0.1, 0.8])  # the unseen arm is best
    state = seen(config, give([0.2, 0.9, 0.1]))
    assert compute_probabilities(config, state, WEIGHTS) == pytest.approx([0.1, 0.8, 0.1])


def test_ucb_by_hand():
    config = options("ucb", discount=0.5, bonus=1.0)
    uniforms = np.zeros((6, 4))
    assert choose_arms(config, start(3), WEIGHTS, uniforms)[:3] == [0, 1, 2]  # each once first
    state = seen(config, give([0.5, 0.6, 0.4], groups=(8, 8, 2)), give([0.5, 0.6, 0.4], groups=(4, 8, 1)))
    assert state["groups"] == [8, 12, 2] and state["total"] == pytest.approx([4, 7.2, 0.8])
    # t = 22: 0.5 + 0.879, 0.6 + 0.718, 0.4 + 1.758; arm 2's bonus falls with its pulls: 1.446, 1.261, 1.135, 1.042 and,
    # at t = 27, 0.970, when arm 0's is 0.908.
    assert choose_arms(config, state, WEIGHTS, uniforms) == [2, 2, 2, 2, 2, 0]


def test_thompson_draws_from_the_posterior():
    config = options("thompson", signal="variance", discount=1.0)
    state = seen(config, give([0, 0, 0], right=[19, 10, 1], wrong=[1, 10, 19]))
    medians = choose_arms(config, state, WEIGHTS, np.full((1, 4), 0.5))
    assert medians == [1]  # of 20/22, 1/2, 2/22 the one where 4 p (1 - p) is greatest
    config.signal = "accuracy"
    assert choose_arms(config, state, WEIGHTS, np.full((1, 4), 0.5)) == [0]
    extreme = np.array([[0.5, 1e-9, 1 - 1e-9, 0.5]])  # the middle arm's draw is nearly one
    assert choose_arms(config, state, WEIGHTS, extreme) == [1]


def test_exp3_by_hand():
    drawn = [0.5, 0.3, 0.2]
    gains = estimate_gains(give([0.9, 0.4, 0.0], groups=(5, 5, 0)), drawn)
    assert gains == pytest.approx([1 - 0.5 * 0.1 / 0.5, 1 - 0.5 * 0.6 / 0.3, 1.0])
    assert estimate_gains(give([0.5, 0.5, 0], groups=(4, 4, 0)), [0.5, 0.5, 0.0]) == pytest.approx([0.5, 0.5, 0.5])
    config = options("exp3", learning_rate=2.0, discount=0.5)
    state = observe(
        config, observe(config, start(3), give([0.9, 0.4, 0], (5, 5, 0)), drawn), give([0] * 3, (0, 10, 0)), drawn
    )
    wanted = 0.5 * gains + [1.0, 1 - 1 / 0.3, 1.0]
    assert state["gains"] == pytest.approx(wanted)
    powers = np.exp(2 * wanted)
    assert compute_probabilities(config, state, WEIGHTS) == pytest.approx(powers / powers.sum())


def test_exp3_is_unbiased():
    chance, drawn, x = np.random.default_rng(2), np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 0.9])
    found = [estimate_gains(give(x, groups=chance.multinomial(8, drawn)), drawn) for _ in range(4000)]
    assert np.mean(found, axis=0) == pytest.approx(x, abs=0.02)


@pytest.mark.parametrize("sampler", BANDITS)
def test_arms_that_change_are_followed(sampler):
    """The best arm is 0 for 60 steps, then 2: most draws are its within 40 more, and were arm 0's before."""
    config = options(sampler, discount=0.9, min_probability=0.05, bonus=0.3)
    chance, state, drawn = np.random.default_rng(3), start(3), []
    for step in range(100):
        x = np.array([0.9, 0.3, 0.1] if step < 60 else [0.1, 0.3, 0.9])
        p = compute_probabilities(config, state, np.ones(3))
        arms = choose_arms(config, state, np.ones(3), chance.random((16, 4)))
        groups = np.bincount(arms, minlength=3)
        right = chance.binomial(groups * 8, x)
        noisy = np.clip(x + chance.normal(0, 0.1, 3), 0, 1)
        state = observe(config, state, give(noisy, groups, right, groups * 8 - right), p)
        drawn.append(groups / 16)
    assert np.mean(drawn[40:60], axis=0).argmax() == 0 and np.mean(drawn[40:60], axis=0)[0] > 0.5
    assert np.mean(drawn[85:], axis=0).argmax() == 2 and np.mean(drawn[85:], axis=0)[2] > 0.5


def test_mopps_by_hand():
    assert update_counts([1.0, 1.0], 6, 2, 1.0) == [7.0, 3.0]
    assert update_counts([7.0, 3.0], 0, 8, 0.5) == [4.0, 10.0]  # half of the way to the prior, then the group
    counts = np.array([[1.0, 1], [7, 3], [4, 10], [50, 50], [1, 1]])
    medians = np.array([0.9, 0.5, 0.5, 0.5, np.nan])  # 0.9, 0.71, 0.28, 0.5
    assert choose_prompts(counts, medians, 2) == [3, 1]
    assert choose_prompts(counts, medians, 5) == [3, 1, 2, 0]


@pytest.mark.parametrize("sampler", [*PROBABILITIES, *CHOICES])
def test_the_state_survives_json(sampler):
    config, uniforms = options(sampler, discount=0.7), np.random.default_rng(4).random((6, 4))
    state = whole = start(3)
    for x in np.random.default_rng(5).random((5, 3)):
        drawn = compute_probabilities(config, state, WEIGHTS)
        state = json.loads(json.dumps(observe(config, state, give(x), drawn), allow_nan=False))
        whole = observe(config, whole, give(x), compute_probabilities(config, whole, WEIGHTS))
        assert state == whole
        assert choose_arms(config, state, WEIGHTS, uniforms) == choose_arms(config, whole, WEIGHTS, uniforms)


def test_what_is_not_seen_is_not_changed():
    state = seen(options("sec"), give([0.5, 0.5, 0.5], groups=(4, 0, 4), right=[10, 0, 0], wrong=[30, 0, 0]))
    assert state["value"] == [0.5, None, 0.5] and state["accuracy"] == [0.25, None, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "sek"}, r"curriculum\.sampler='sek' .*did you mean 'sec'"),
        ({"arm": "tasks"}, r"curriculum\.arm='tasks' .*did you mean 'task'"),
        ({"signal": "loss"}, r"curriculum\.signal='loss'"),
        ({"step_size": 1.5}, r"curriculum\.step_size=1\.5"),
        ({"sampler": "mopps"}, r"'mopps' draws prompts, the others do not"),
        ({"sampler": "sec", "arm": "prompt"}, r"'mopps' draws prompts, the others do not"),
        ({"sampler": "weights", "arm": "bin"}, r"goes by the weights of task sets, but curriculum\.arm='bin'"),
        (
            {"sampler": "thompson"},
            r"curriculum\.signal='abs_advantage' is no function \(accepted: accuracy, variance\)",
        ),
        ({"sampler": "ucb", "keep_shares": True}, r"keep_shares=True .*for samplers with probabilities"),
        ({"sampler": "sec", "stages": ("a",)}, r"stages=\('a',\) with stage_accuracy=0\.0 and stage_steps=0"),
        ({"sampler": "sec", "stage_steps": 3}, r"stages=\(\) with stage_accuracy=0\.0 and stage_steps=3"),
        ({"stages": ("a",), "stage_steps": 3}, r"stages open task sets, but curriculum\.sampler='mixture'"),
        ({"sampler": "mopps", "arm": "prompt", "retire_at": 0.9}, r"curriculum\.retire_at=0\.9"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(errors.ConfigError, match=message):
        CurriculumConfig(**changes).validate(dynamic=True)


def test_shares_are_kept_of_dynamic_sampling_only():
    CurriculumConfig(sampler="sec", keep_shares=True).validate(dynamic=True)
    with pytest.raises(errors.ConfigError, match=r"rollout\.dynamic_rounds > 0"):
        CurriculumConfig(sampler="sec", keep_shares=True).validate(dynamic=False)
