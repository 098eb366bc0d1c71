"""Every preset: its gradient against differences of the paper's loss, its coefficients on policy, and what must not
change it. The log-probs of the tokens are the parameters; batches, fields and loss are those of the update."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.algo.aggregation import AGGREGATIONS, weigh_right
from rlvr.algo.correction import CorrectionConfig
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.presets import PRESETS, preset
from rlvr.algo.selection import SelectionConfig
from rlvr.learner.batch import Row, make_batches
from rlvr.learner.loss import Totals, chunk_loss, make_fields
from rlvr.learner.scoring import Measured, choose_tokens
from tests.algo import papers
from tests.algo.papers import (
    BUDGET,
    ENTROPIES,
    GROUPS,
    LENGTHS,
    NOW,
    OLD,
    PAPERS,
    PROXIMAL,
    REFERENCE,
    RIGHT,
    A,
    B,
    N,
)

PROMPTS = {0: (1, 2, 3), 1: (4, 5)}
COMPLETIONS = [np.arange(n, dtype=np.int32) + 7 * i for i, n in enumerate(LENGTHS)]
# Where the published numbers would do nothing at all to so few tokens, the same thing with others.
SMALL: dict[str, dict[str, Any]] = {
    "clip_cov": {"selection": SelectionConfig(covariance="clip_cov", share=1.0, low=0.25)},
    "seq_mask_tis": {
        "correction": CorrectionConfig(
            "untruncated", reject="seq_geo", reject_low=papers.SEQ_LOW, reject_high=papers.SEQ_HIGH
        )
    },
    "seq_tis": {"correction": CorrectionConfig("tis", level="seq_prod", high=papers.SEQ_CAP)},
    "opsm": {"correction": CorrectionConfig(opsm=papers.OPSM)},
}


def objective_of(name: str) -> ObjectiveConfig:
    config = preset(name, **SMALL.get(name, {}))
    config.validate()
    return config


def take(
    objective: ObjectiveConfig,
    now: Sequence[np.ndarray],
    *,
    old: Sequence[np.ndarray] = OLD,
    proximal: Sequence[np.ndarray] = PROXIMAL,
    reference: Sequence[np.ndarray] = REFERENCE,
    advantages: Sequence[Any] = tuple(A),
    prompts: dict[int, tuple[int, ...]] = PROMPTS,
    entropy_coef: float = 0.0,
    micro_rows: int = 2,
    length: int = 24,
    order: Sequence[int] = range(B),
) -> tuple[float, list[np.ndarray], dict[str, float]]:
    """Returns (loss, gradient by each sequence's log-probs, sums for the metrics) of a step, in float64.

    Whatever is not a sampled token is poisoned.
    """
    rows = [
        Row(prompts[GROUPS[i]], COMPLETIONS[i], old[i], advantages[i], GROUPS[i], proximal_logprobs=proximal[i])
        for i in order
    ]
    rows = choose_tokens(objective, rows, [Measured(now[i], ENTROPIES[i]) for i in order])
    if objective.imitation_coef:
        shares = weigh_right(np.array([LENGTHS[i] for i in order]), np.array([RIGHT[i] for i in order]))
        rows = [row._replace(imitation=share) for row, share in zip(rows, shares, strict=True)]
    lengths, groups = np.array([LENGTHS[i] for i in order]), np.array([GROUPS[i] for i in order])
    weights = AGGREGATIONS[objective.aggregation](lengths, groups, BUDGET)
    batches, places = make_batches(
        rows, micro_rows=micro_rows, length=length, weights=weights, reference=[reference[i] for i in order]
    )
    index = [np.zeros(batch.mask.shape, np.int64) for batch in batches]
    starts = np.cumsum([0, *LENGTHS])
    for i, at in zip(order, places, strict=True):
        index[at.batch][at.row, at.scored : at.scored + LENGTHS[i]] = np.arange(starts[i], starts[i + 1])

    with jax.enable_x64(True):
        totals = Totals(*(np.float64(x) for x in (N, N, entropy_coef, objective.kl_coef)))
        value, sums, gradient = 0.0, {}, np.zeros(N)
        for batch, at in zip(batches, index, strict=True):
            floats = ["old_logprobs", "reference_logprobs", "proximal_logprobs", "advantages", "weights"]
            floats += ["imitation"] * bool(objective.imitation_coef)
            poisoned = {f: np.where(batch.mask, np.float64(getattr(batch, f)), np.nan) for f in floats}
            micro = batch._replace(**poisoned, sequences=np.where(batch.mask, batch.sequences, 10**6))

            def loss(theta: jax.Array, micro: Any = micro, at: np.ndarray = at) -> Any:
                logprobs = jnp.where(micro.mask, theta[at], jnp.nan)
                entropies = jnp.where(micro.mask, np.concatenate(ENTROPIES)[at], jnp.nan)
                fields = make_fields(objective, micro, totals, jax.lax.stop_gradient(logprobs))
                fields = {name: jnp.asarray(x) for name, x in fields.items()}
                own, (sums, _) = chunk_loss(objective, logprobs, entropies, fields)
                return own, sums

            theta = jnp.asarray(np.concatenate(now))
            (own, more), slope = jax.value_and_grad(loss, has_aux=True)(theta)
            value, gradient = value + float(own), gradient + np.asarray(slope)
            sums = {name: sums.get(name, 0.0) + float(x) for name, x in more.items()}
    return value, np.split(gradient, starts[1:-1]), sums


def test_every_preset_has_its_papers_loss() -> None:
    assert PAPERS.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_value_and_gradient_are_the_papers(name: str) -> None:
    value, got, _ = take(objective_of(name), NOW)
    # The batch holds weights in float32.
    np.testing.assert_allclose(value, PAPERS[name](NOW, NOW), rtol=1e-6)
    want = papers.gradient(PAPERS[name], NOW)
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(want), rtol=2e-6, atol=2e-9)
    assert sum(np.any(x != 0) for x in want) >= 2


# The coefficient on grad log pi(y_it) of the loss at ratio one, by sequence.
ON_POLICY = {
    "token_mean": -A / N,
    "seq_mean_token_mean": -A / (B * np.array(LENGTHS)),
    "seq_mean_token_sum": -A / B,
    "seq_sum_norm": -A / (B * BUDGET),
}


@pytest.mark.parametrize("name", PRESETS)
def test_coefficients_on_policy(name: str) -> None:
    objective = objective_of(name)
    _, got, _ = take(objective, NOW, old=NOW, proximal=NOW, reference=NOW)
    for i, coefficient in enumerate(ON_POLICY[objective.aggregation]):
        want = np.full(LENGTHS[i], coefficient)
        if name == "top_entropy":
            want = np.where(ENTROPIES[i] >= np.quantile(np.concatenate(ENTROPIES), 0.8), want, 0.0)
        if name == "clip_cov":
            c = papers.covariance(NOW[i], i)
            want = np.where((c > 0.25) & (c < 5), 0.0, want)
        if name == "vapo":
            want -= 0.1 * RIGHT[i] / np.sum(np.array(LENGTHS)[list(RIGHT)])
        np.testing.assert_allclose(got[i], want, rtol=1e-6, atol=1e-12)


LAYOUTS: dict[str, dict[str, Any]] = {
    "micro_batches": {"micro_rows": 1, "length": 12},
    "padding": {"micro_rows": 1, "length": 40},
    "order": {"order": (4, 0, 3, 5, 2, 1), "micro_rows": 1, "length": 12},
    "unshared": {"prompts": {0: (1,), 1: (1, 4, 5)}, "micro_rows": 1, "length": 12},
}


@pytest.mark.parametrize("name", PRESETS)
def test_layout_changes_nothing(name: str) -> None:
    objective = objective_of(name)
    value, gradient, sums = take(objective, NOW)
    for layout in LAYOUTS.values():
        other, slopes, others = take(objective, NOW, **layout)
        np.testing.assert_allclose(other, value, rtol=1e-12)
        np.testing.assert_allclose(np.concatenate(slopes), np.concatenate(gradient), rtol=1e-11, atol=1e-15)
        assert sums.keys() == others.keys()
        for metric, total in sums.items():  # counts of tokens are in float32
            np.testing.assert_allclose(others[metric], total, rtol=1e-6, atol=1e-12, err_msg=metric)


def test_clipping_acts_where_it_should() -> None:
    """Or the comparisons above would tell little."""
    for name in ("grpo", "dapo", "gspo", "luspo", "gmpo", "aspo", "dual_clip", "tis"):
        _, _, sums = take(objective_of(name), NOW)
        assert 0 < sums["clip/high"] < N and 0 < sums["clip/low"] < N, name
    for name in ("dppo_tv", "dppo_kl"):
        assert 0 < take(objective_of(name), NOW)[2]["clip/divergence"] < N
    for name in ("tis", "icepop", "seq_tis", "seq_mask_tis"):
        assert 0 < take(objective_of(name), NOW)[2]["correction/changed"] < N, name
    assert 0 < take(objective_of("opsm"), NOW)[2]["correction/opsm"] < N
    assert 0 < take(objective_of("m2po"), NOW)[2]["selection/moment"] < N


def test_gspo_token_is_gspo_and_takes_advantages_of_tokens() -> None:
    objective = objective_of("gspo_token")
    _, whole, _ = take(objective, NOW)
    _, by_token, _ = take(objective, NOW, advantages=[np.full(n, a) for n, a in zip(LENGTHS, A, strict=True)])
    np.testing.assert_allclose(np.concatenate(by_token), np.concatenate(whole))
    # One token's advantage is its own: the ratio is that of the sequence, the gradient the token's.
    loose = dataclasses.replace(objective, clip_low=1.0, clip_high=1e3)
    single = [np.zeros(n) for n in LENGTHS]
    single[1][2] = 2.0
    _, got, _ = take(loose, NOW, advantages=single)
    s = np.exp(np.mean(NOW[1] - OLD[1]))
    want = np.zeros(5)
    want[2] = -s * 2.0 / (B * 5)
    np.testing.assert_allclose(got[1], want, rtol=1e-6)
    assert all(np.all(got[i] == 0) for i in range(B) if i != 1)


def test_the_gradient_of_a_product_of_ratios() -> None:
    objective = ObjectiveConfig(surrogate="plain", ratio="seq_prod", aggregation="seq_mean_token_sum")

    def product(now: Any, at: Any) -> float:
        return -sum(float(np.exp(np.sum(now[i] - OLD[i]))) * A[i] for i in range(B)) / B

    _, got, _ = take(objective, NOW)
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(papers.gradient(product, NOW)), rtol=2e-6)


def test_bypass_and_recompute_agree_where_the_policies_do() -> None:
    """With proximal = rollout the weights are 1; otherwise the gap is corrected for once, not twice."""
    bypass = objective_of("dapo")
    for name in ("decoupled", "tis", "mis", "icepop", "seq_tis", "seq_mis"):
        _, same, _ = take(objective_of(name), NOW, proximal=OLD)
        np.testing.assert_allclose(np.concatenate(same), np.concatenate(take(bypass, NOW)[1]), rtol=1e-12)
        _, other, _ = take(objective_of(name), NOW)
        assert np.max(np.abs(np.concatenate(other) - np.concatenate(same))) > 1e-3


def test_on_policy_by_definition_with_a_weight() -> None:
    """old = current: the ratio is 1, and what is left of the gap is min(w, C)."""
    objective = ObjectiveConfig(
        old="current", aggregation="token_mean", correction=CorrectionConfig("tis", level="seq_geo", high=1.2)
    )
    _, got, _ = take(objective, NOW)
    for i in range(B):
        w = min(np.exp(np.mean(NOW[i] - OLD[i])), 1.2)
        np.testing.assert_allclose(got[i], np.full(LENGTHS[i], -w * A[i] / N), rtol=1e-6)


def test_weights_have_no_gradient_and_touch_the_policy_term_only() -> None:
    """Outlier rejection of all sequences leaves the KL term whole."""
    nothing = CorrectionConfig("untruncated", reject="outlier", reject_low=1.0, reject_high=1.0)
    fields = {"old": "recomputed", "aggregation": "token_mean", "kl": "k2", "kl_coef": 0.5}
    _, got, sums = take(ObjectiveConfig(**fields, correction=nothing), NOW)
    want = np.concatenate([0.5 * (NOW[i] - REFERENCE[i]) / N for i in range(B)])
    np.testing.assert_allclose(np.concatenate(got), want, rtol=1e-6)
    assert sums["correction/changed"] == N and sums["correction/weight"] == 0


def test_the_entropy_bonus_is_a_token_mean_whatever_the_aggregation() -> None:
    objective = ObjectiveConfig(entropy_coef=0.3, aggregation="seq_mean_token_sum")
    with_bonus, _, _ = take(objective, NOW, entropy_coef=0.3)
    without, _, _ = take(objective, NOW, entropy_coef=0.0)
    np.testing.assert_allclose(without - with_bonus, 0.3 * np.mean(np.concatenate(ENTROPIES)), rtol=1e-9)
