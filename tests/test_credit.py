"""From verdicts to advantages: rewards of parts and of lengths, the KL in the reward, whitening, what is left out."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from rlvr import errors
from rlvr.algo.distill import DistillConfig
from rlvr.algo.lengths import LengthConfig
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.presets import preset
from rlvr.algo.rewards import RewardConfig
from rlvr.algo.value import ValueConfig, estimate_advantages
from rlvr.checks import validate
from rlvr.config import ExperimentConfig
from rlvr.credit import assign_credit, make_rows
from rlvr.rollout.collect import Episode
from rlvr.types import Completion, Request, Task, Verdict
from rlvr.verifiers.base import make_failure
from tests import tiny

TASK = Task(0, "t", "", "", "exact")
G, BUDGET = 2, 5
LENGTHS = (2, 5, 3, 1)


def judged(score: float, **parts: float | None) -> Verdict:
    return Verdict(score, "correct" if score >= 1 else "wrong", parts={"strict": score, "lenient": score, **parts})


def sample(verdicts: list[Verdict], texts: tuple[str, ...] = ("",) * 4) -> list[Episode]:
    """Two groups of two; the second sample has the length of the budget and was cut off."""
    rng = np.random.default_rng(0)
    return [
        Episode(
            TASK,
            Completion(
                Request(i, 0, i, (1,)),
                np.arange(n, dtype=np.int32),
                rng.normal(-1, 0.3, n).astype(np.float32),
                "length" if n == BUDGET else "stop",
            ),
            text,
            verdict,
        )
        for i, (n, verdict, text) in enumerate(zip(LENGTHS, verdicts, texts, strict=True))
    ]


BINARY = [judged(s) for s in (1.0, 0.0, 0.0, 1.0)]


def make_config(objective: ObjectiveConfig, **reward: Any) -> ExperimentConfig:
    config = tiny.make_config(moe=False)
    config.objective, config.reward = objective, RewardConfig(**reward)
    config.rollout.group_size = G
    assert config.engine.max_new_tokens == BUDGET
    validate(config)
    return config


def credit(
    objective: ObjectiveConfig,
    verdicts: list[Verdict] = BINARY,
    reference: Any = None,
    values: list[np.ndarray] | None = None,
    **reward: Any,
) -> Any:
    texts = reward.pop("texts", ("",) * 4)
    episodes = sample(verdicts, texts)
    return assign_credit(make_config(objective, **reward), episodes, make_rows(episodes, G), reference, values=values)


MEAN = ObjectiveConfig(advantage="dr_grpo")


def test_the_length_rewards_are_applied_in_tokens_and_to_the_valid() -> None:
    verdicts = [*BINARY[:3], make_failure("error", "down")]
    soft = credit(MEAN, verdicts, length=LengthConfig(overlong_buffer=4, overlong_weight=0.5))
    np.testing.assert_allclose(soft.rewards, [1 - 0.5 / 4, -0.5, -0.5 * 2 / 4, 0])
    np.testing.assert_array_equal(soft.valid, [1, 1, 1, 0])
    cosine = credit(MEAN, length=LengthConfig(cosine=True))
    at = np.array(LENGTHS) / BUDGET
    want = np.where([1, 0, 0, 1], 0.5 + 0.25 * (1 + np.cos(np.pi * at)), -0.25 * (1 + np.cos(np.pi * at)))
    np.testing.assert_allclose(cosine.rewards, want)
    repeats = credit(
        MEAN, texts=("a b a b A B", "a b", "", "x y z"), length=LengthConfig(repetition=2.0, repetition_n=2)
    )
    np.testing.assert_allclose(repeats.rewards, [1 - 2 * (1 - 2 / 5), 0, 0, 1])
    linear = credit(MEAN, length=LengthConfig(linear=0.2))
    np.testing.assert_allclose(linear.rewards, [1 - 0.1 * 2 / 5, -0.1, -0.1, 1 - 0.1 / 3])


def test_a_penalty_for_hacking_is_not_paid_back_for_length() -> None:
    accused = dataclasses.replace(BINARY[0], parts={**BINARY[0].parts, "audit/exits": 1.0})
    told = credit(MEAN, [accused, *BINARY[1:]], audit_penalty=2.0, length=LengthConfig(cosine=True))
    assert told.rewards[0] == -2.0


def test_truncated_samples_are_compared_with_but_not_learned_from() -> None:
    plain, filtered = credit(MEAN), credit(MEAN, length=LengthConfig(drop_truncated=True))
    np.testing.assert_allclose(plain.advantages, [0.5, -0.5, -0.5, 0.5])
    np.testing.assert_allclose(filtered.advantages, [0.5, 0.0, -0.5, 0.5])
    assert filtered.valid.all()


def test_rewards_of_parts_are_summed_then_normalised_or_the_other_way_round() -> None:
    verdicts = [judged(1.0, right=r, form=f) for r, f in ((1, 1), (0, 1), (0, None), (1, 0))]
    parts = {"parts": ("right", "form"), "part_weights": (1.0, 0.5)}
    summed = credit(ObjectiveConfig(epsilon=0.0), verdicts, **parts)
    np.testing.assert_allclose(summed.rewards, [1.5, 0.5, 0, 1])
    one = np.sqrt(0.5)
    np.testing.assert_allclose(summed.advantages, [one, -one, -one, one])
    apart = credit(ObjectiveConfig(advantage="gdpo", epsilon=0.0), verdicts, **parts)
    np.testing.assert_allclose(apart.advantages, [one, -one, -one, one])  # form says nothing in either group
    verdicts[2] = judged(1.0, right=0, form=1)
    apart = credit(ObjectiveConfig(advantage="gdpo", epsilon=0.0), verdicts, **parts)
    np.testing.assert_allclose(apart.advantages, [one, -one, -0.5 * one, 0.5 * one])
    with pytest.raises(errors.DataError, match=r"reward\.parts names 'from'.*did you mean 'form'"):
        credit(MEAN, verdicts, parts=("right", "from"), part_weights=(1.0, 1.0))


REFERENCE = [np.full(n, -1.1, np.float32) for n in LENGTHS]


def test_kl_in_the_scalar_reward_and_to_go() -> None:
    episodes = sample(BINARY)
    drift = [e.completion.logprobs.astype(np.float64) - r for e, r in zip(episodes, REFERENCE, strict=True)]
    scalar = credit(ObjectiveConfig(advantage="reward", kl="k1_in_reward", kl_coef=0.3), reference=REFERENCE)
    np.testing.assert_allclose(
        scalar.advantages, [r - 0.3 * d.sum() for r, d in zip((1, 0, 0, 1), drift, strict=True)], rtol=1e-6
    )
    assert scalar.tokens is None
    going = credit(ObjectiveConfig(advantage="reward", kl="k1_to_go", kl_coef=0.3), reference=REFERENCE)
    np.testing.assert_allclose(going.rewards, [1, 0, 0, 1])
    for own, r, d in zip(going.tokens, (1, 0, 0, 1), drift, strict=True):
        np.testing.assert_allclose(own, [r - 0.3 * d[t:].sum() for t in range(len(d))], rtol=1e-5)
        np.testing.assert_allclose(own[0], r - 0.3 * d.sum(), rtol=1e-5)  # the first token answers for all
    rows = going.attach(make_rows(episodes, G))
    np.testing.assert_array_equal(rows[1].advantage, going.tokens[1])
    np.testing.assert_allclose(going.advantages, [x.mean() for x in going.tokens])


def test_whitening_is_over_all_valid_tokens_or_samples_of_the_rollout() -> None:
    verdicts = [judged(1.0), judged(0.0), judged(0.25), make_failure("error", "down")]
    rewards, lengths = np.array([1, 0, 0.25]), np.array(LENGTHS[:3])
    by_sample = credit(ObjectiveConfig(advantage="reward", whiten="samples"), verdicts)
    np.testing.assert_allclose(by_sample.advantages[:3], (rewards - rewards.mean()) / rewards.std(), rtol=1e-6)
    by_token = credit(ObjectiveConfig(advantage="reward", whiten="tokens"), verdicts)
    each = np.repeat(rewards, lengths)
    np.testing.assert_allclose(by_token.advantages[:3], (rewards - each.mean()) / each.std(), rtol=1e-6)
    assert by_sample.advantages[3] == by_token.advantages[3] == 0.0
    told = credit(preset("reinforce_pp", kl_coef=0.3), verdicts, REFERENCE)
    tokens = np.concatenate(told.tokens[:3])
    np.testing.assert_allclose([tokens.mean(), tokens.std()], [0, 1], atol=1e-6)
    np.testing.assert_array_equal(told.tokens[3], [0.0])


VALUES = [np.linspace(0.1 * i, 0.5, n).astype(np.float32) for i, n in enumerate(LENGTHS)]
GAE = ObjectiveConfig(advantage="gae", value=ValueConfig(gamma=0.9, lam=0.8, lam_returns=1.0))


def test_advantages_of_tokens_come_from_values_and_returns_are_not_whitened() -> None:
    told = credit(GAE, values=VALUES)
    whitened = credit(dataclasses.replace(GAE, whiten="tokens"), values=VALUES)
    flat = np.concatenate(told.tokens)
    for i, (own, reward) in enumerate(zip(VALUES, (1, 0, 0, 1), strict=True)):
        rewards = np.append(np.zeros(LENGTHS[i] - 1), reward)
        np.testing.assert_allclose(told.tokens[i], estimate_advantages(rewards, np.float64(own), 0.9, 0.8))
        np.testing.assert_allclose(told.returns[i], reward * 0.9 ** np.arange(LENGTHS[i])[::-1], atol=1e-12)
        np.testing.assert_allclose(whitened.tokens[i], (told.tokens[i] - flat.mean()) / flat.std(), rtol=1e-9)
        np.testing.assert_array_equal(whitened.returns[i], told.returns[i])
    row = told.attach(make_rows(sample(BINARY), G))[1]
    np.testing.assert_array_equal(row.values, VALUES[1])
    np.testing.assert_array_equal(row.returns, told.returns[1])
    assert (row.value_weight, row.truncated, row.right) == (1.0, True, False)
    metrics, values, returns = told.metrics(), np.concatenate(VALUES), np.concatenate(told.returns)
    np.testing.assert_allclose([metrics["value/mean"], metrics["value/returns"]], [values.mean(), returns.mean()])
    np.testing.assert_allclose(metrics["value/explained_variance"], 1 - np.var(returns - values) / np.var(returns))
    assert credit(MEAN).metrics() == {}


def test_without_values_at_lambda_one_it_is_reinforce_pp() -> None:
    zeros = [np.zeros(n, np.float32) for n in LENGTHS]
    same = preset("ppo", kl_coef=0.3, value=ValueConfig(lam=1.0, lam_returns=1.0))
    told, want = credit(same, BINARY, REFERENCE, zeros), credit(preset("reinforce_pp", kl_coef=0.3), BINARY, REFERENCE)
    np.testing.assert_allclose(np.concatenate(told.tokens), np.concatenate(want.tokens), rtol=1e-9)
    # The returns are the reward less the KL to come.
    drift = sample(BINARY)[1].completion.logprobs - REFERENCE[1]
    np.testing.assert_allclose(told.returns[1], [-0.3 * drift[t:].sum() for t in range(5)], rtol=1e-5)
    # In the scalar reward the same KL is the last token's alone.
    scalar = credit(dataclasses.replace(same, kl="k1_in_reward"), BINARY, REFERENCE, zeros)
    np.testing.assert_allclose(scalar.returns[1], np.full(5, -0.3 * drift.sum()), rtol=1e-5)


def test_a_sample_cut_off_is_worth_its_reward_or_its_value_there() -> None:
    verdicts = [judged(1.0), judged(0.75), judged(0.0), judged(1.0)]
    ends = credit(GAE, verdicts, values=VALUES)
    np.testing.assert_allclose(ends.returns[1][-1], 0.75)
    goes_on = dataclasses.replace(GAE, value=dataclasses.replace(GAE.value, bootstrap=True))
    cut = credit(goes_on, verdicts, values=[VALUES[0], np.append(VALUES[1], 0.4), *VALUES[2:]])
    np.testing.assert_allclose(cut.returns[1], 0.4 * 0.9 ** np.arange(5, 0, -1), rtol=1e-6)
    assert len(cut.values[1]) == 5
    for i in (0, 2, 3):
        np.testing.assert_array_equal(cut.returns[i], ends.returns[i])


def test_what_is_not_learned_from_teaches_neither_policy_nor_critic() -> None:
    verdicts = [judged(1.0), judged(1.0), make_failure("error", "down"), judged(0.0)]
    told = credit(GAE, verdicts, values=VALUES, length=LengthConfig(drop_truncated=True))
    np.testing.assert_array_equal(told.kept, [1, 0, 0, 1])
    np.testing.assert_array_equal(told.right, [1, 0, 0, 0])
    assert all(np.all(told.tokens[i] == 0) for i in (1, 2)) and all(np.any(told.tokens[i] != 0) for i in (0, 3))
    rows = told.attach(make_rows(sample(verdicts), G))
    assert [row.value_weight for row in rows] == [row.weight for row in rows] == [1, 0, 0, 1]


def test_a_penalised_sample_is_no_example() -> None:
    accused = dataclasses.replace(BINARY[0], parts={**BINARY[0].parts, "audit/exits": 1.0})
    verdicts = [accused, *BINARY[1:]]
    np.testing.assert_array_equal(credit(MEAN, verdicts).right, [1, 0, 0, 1])
    np.testing.assert_array_equal(credit(MEAN, verdicts, audit_penalty=1.0).right, [0, 0, 0, 1])


BOOTSTRAP = ObjectiveConfig(advantage="gae", value=ValueConfig(bootstrap=True))


@pytest.mark.parametrize(
    ("objective", "reward", "words"),
    [
        (preset("gdpo"), {}, r"objective.advantage='gdpo' .*reward.parts=\(\): name at least two"),
        (
            preset("maxrl"),
            {"audit_penalty": 1.0},
            "reward.audit_penalty makes others.*'maxrl' is for rewards of at least 0",
        ),
        (
            preset("pass_at_k", pass_k=2),
            {"length": LengthConfig(overlong_buffer=2)},
            "reward.length makes others.*0 and 1",
        ),
        (preset("pkpo", pass_k=2, kl="k1_in_reward", kl_coef=0.1), {}, "objective.kl='k1_in_reward' makes others"),
        (preset("pass_at_k", pass_k=3), {}, "objective.pass_k=3 is more than rollout.group_size=2"),
        (MEAN, {"length": LengthConfig(overlong_buffer=6)}, "overlong_buffer=6 is more than engine.max_new_tokens=5"),
        (
            BOOTSTRAP,
            {"length": LengthConfig(overlong_buffer=2)},
            "overlong_buffer=2 with objective.value.bootstrap=True",
        ),
        (
            BOOTSTRAP,
            {"length": LengthConfig(drop_truncated=True)},
            "drop_truncated=True with objective.value.bootstrap",
        ),
        (MEAN, {"parts": ("a", "b"), "part_weights": (1.0,)}, "one weight for each part"),
        (MEAN, {"parts": ("a",), "part_weights": (1.0,), "length": LengthConfig(cosine=True)}, "place of the score"),
    ],
)
def test_rewards_that_do_not_fit_the_advantage_are_refused(
    objective: ObjectiveConfig, reward: dict[str, Any], words: str
) -> None:
    with pytest.raises(errors.ConfigError, match=re.sub(r"(?<!\\)\.(?!\*)", r"\\.", words)):
        make_config(objective, **reward)


def test_a_teachers_lead_is_added_token_by_token() -> None:
    """reward * A + coef * (log teacher - log student), bounded; of an unscorable sample too, whose A is zero."""
    verdicts = [*BINARY[:3], make_failure("error", "down")]
    episodes = sample(verdicts)
    rows = make_rows(episodes, G)
    taught = [row.old_logprobs + 0.5 * (i + 1) for i, row in enumerate(rows)]
    taught[2] = taught[2] + 100.0
    config = make_config(MEAN)
    config.distill = DistillConfig("on_policy", coef=0.1, reward=2.0)
    got = assign_credit(config, episodes, rows, None, taught=taught)
    plain = assign_credit(make_config(MEAN), episodes, rows, None).advantages
    want = 2.0 * plain + 0.1 * np.array([0.5, 1.0, 20.0, 2.0])
    np.testing.assert_allclose(got.advantages, want, rtol=1e-5)
    assert got.tokens is not None and [len(each) for each in got.tokens] == list(LENGTHS)
    np.testing.assert_allclose(got.tokens[1], np.full(5, want[1]), rtol=1e-5)
    config.distill = DistillConfig("on_policy", "full", reward=0.0)
    silent = assign_credit(config, episodes, rows, None)
    assert not np.any(silent.advantages) and silent.tokens is None
