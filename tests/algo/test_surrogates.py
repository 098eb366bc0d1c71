"""Surrogates by hand: values, gradients, and where a bound stops them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.surrogates import SURROGATES

CONFIG = ObjectiveConfig(clip_low=0.2, clip_high=0.28)


def at_ratio(
    config: ObjectiveConfig, ratio: float, advantage: float, *, old: float = -1.5, high_entropy: bool = False
) -> tuple[float, float, dict[str, int]]:
    """Returns (loss, d loss / d log prob, indicators) of one token."""
    start = jnp.full((1, 1), old)
    fields = {
        "old": start,
        "rollout": start,
        "advantages": jnp.full((1, 1), advantage),
        "high_entropy": jnp.full((1, 1), high_entropy),
        "sequence": jnp.clip(jnp.log(jnp.full((1, 1), ratio)), -config.clip_low, config.clip_high),
    }

    def loss(logprobs: jax.Array) -> Any:
        losses, indicators = SURROGATES[config.surrogate](logprobs, fields, config)
        return losses.sum(), indicators

    (value, indicators), slope = jax.value_and_grad(loss, has_aux=True)(start + np.log(ratio).astype(np.float32))
    return float(value), float(slope[0, 0]), {name: int(x[0, 0]) for name, x in indicators.items()}


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "high", "low"),
    [
        (1.0, 2.0, -2.0, -2.0, 0, 0),
        (1.27, 2.0, -2.54, -2.54, 0, 0),  # between 1 + low and 1 + high: the sides are not swapped
        (1.3, 2.0, -2.56, 0.0, 1, 0),
        (0.75, 2.0, -1.5, -1.5, 0, 0),  # outside, but the pessimistic branch is the free one
        (0.75, -2.0, 1.6, 0.0, 0, 1),
        (0.81, -2.0, 1.62, 1.62, 0, 0),
        (1.3, -2.0, 2.6, 2.6, 0, 0),
        (1.3, 0.0, 0.0, 0.0, 0, 0),  # nothing to clip
    ],
)
def test_clip_by_hand(ratio: float, advantage: float, loss: float, gradient: float, high: int, low: int) -> None:
    value, slope, indicators = at_ratio(CONFIG, ratio, advantage)
    np.testing.assert_allclose([value, slope], [loss, gradient], rtol=1e-5, atol=1e-7)
    assert indicators == {"clip/high": high, "clip/low": low}


@pytest.mark.parametrize("bound", [{"dual_clip": 3.0}, {"ratio_cap": 3.0}], ids=["dual", "two_sided"])
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "dual"),
    [
        (3.5, -2.0, 6.0, 0.0, 1),  # bounded, and without gradient
        (2.9, -2.0, 5.8, 5.8, 0),
        (3.5, 2.0, -2.56, 0.0, 0),  # where A > 0 the clip itself acts
        (0.5, -2.0, 1.6, 0.0, 0),
    ],
)
def test_losses_of_negative_advantages_are_bounded(
    bound: dict[str, float], ratio: float, advantage: float, loss: float, gradient: float, dual: int
) -> None:
    config = ObjectiveConfig(clip_low=0.2, clip_high=0.28, **bound)
    value, slope, indicators = at_ratio(config, ratio, advantage)
    np.testing.assert_allclose([value, slope], [loss, gradient], rtol=1e-5, atol=1e-6)
    assert indicators["clip/dual"] == dual


def test_cispo_keeps_a_bounded_gradient_and_ignores_low_ratios() -> None:
    config = ObjectiveConfig(surrogate="cispo", max_weight=1.5)
    for ratio, weight in ((0.01, 0.01), (1.2, 1.2), (9.0, 1.5)):
        for advantage in (2.0, -2.0):
            _, slope, indicators = at_ratio(config, ratio, advantage)
            np.testing.assert_allclose(slope, -weight * advantage, rtol=1e-5)
            assert indicators == {"clip/weight": int(ratio > 1.5)}


def test_sapo_has_slope_one_at_ratio_one_and_fades() -> None:
    config = ObjectiveConfig(surrogate="sapo", sapo_positive=1.0, sapo_negative=4.0)
    for advantage in (2.0, -2.0):
        np.testing.assert_allclose(at_ratio(config, 1.0, advantage)[1], -advantage, rtol=1e-6)
    assert abs(at_ratio(config, 3.0, -2.0)[1]) < 0.1 * abs(at_ratio(config, 3.0, 2.0)[1])


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [(1.6, 1.0, 0.0), (0.5, 1.0, -0.5), (1.6, -1.0, 1.6), (0.5, -1.0, 0.0)],
)
def test_gmpo_clips_one_side_only(ratio: float, advantage: float, gradient: float) -> None:
    """A sequence of one token. Where it clips the other side not, the mean is not bounded either."""
    config = ObjectiveConfig(surrogate="gmpo", clip_low=0.4, clip_high=0.4)
    start = jnp.full((1, 1), -1.5)
    log_r = np.log(ratio)
    bounded = min(log_r, 0.4) if advantage > 0 else max(log_r, -0.4)
    fields = {"old": start, "advantages": jnp.full((1, 1), advantage), "sequence": jnp.full((1, 1), bounded)}
    slope = jax.grad(lambda x: SURROGATES["gmpo"](x, fields, config)[0].sum())(start + np.float32(log_r))
    np.testing.assert_allclose(slope, [[gradient]], rtol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "high_entropy", "gradient"),
    [
        (0.5, 1.0, False, -2.0),  # the weight is 1 / r
        (1.1, 1.0, False, -1 / 1.1),
        (1.3, 1.0, False, 0.0),
        (1.3, 1.0, True, -1 / 1.3),  # wider for uncertain tokens
        (0.1, 1.0, False, -3.0),  # 1 / r above the cap: the cap
        (0.7, -1.0, False, 0.0),
        (0.7, -1.0, True, 0.7),
        (1.5, -1.0, False, 1.5),
        (4.0, -1.0, False, 3.0),
    ],
)
def test_aspo_by_hand(ratio: float, advantage: float, high_entropy: bool, gradient: float) -> None:
    config = ObjectiveConfig(surrogate="aspo", max_weight=3.0)
    _, slope, _ = at_ratio(config, ratio, advantage, old=-3.0, high_entropy=high_entropy)
    np.testing.assert_allclose(slope, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("surrogate", ["dppo_tv", "dppo_kl"])
def test_dppo_bounds_the_probability_not_the_ratio(surrogate: str) -> None:
    config = ObjectiveConfig(surrogate=surrogate, divergence={"dppo_tv": 0.15, "dppo_kl": 0.05}[surrogate])
    rare, common = float(np.log(1e-3)), float(np.log(0.5))
    np.testing.assert_allclose(at_ratio(config, 2.0, 1.0, old=rare)[1], -2.0, rtol=1e-5)  # 0.001 to 0.002: nothing
    assert at_ratio(config, 1.6, 1.0, old=common)[1:] == (0.0, {"clip/divergence": 1})  # 0.5 to 0.8
    np.testing.assert_allclose(at_ratio(config, 1.6, -1.0, old=common)[1], 1.6, rtol=1e-5)  # it is pushed back
    assert at_ratio(config, 0.4, -1.0, old=common)[1] == 0.0
    np.testing.assert_allclose(at_ratio(config, 0.4, 1.0, old=common)[1], -0.4, rtol=1e-5)
    np.testing.assert_allclose(at_ratio(config, 50.0, 1.0, old=float(np.log(1e-4)))[1], -5.0, rtol=1e-5)  # the cap


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_an_absurd_ratio_stays_finite(surrogate: str) -> None:
    config = ObjectiveConfig(surrogate=surrogate, ratio="seq_prod" if surrogate == "vespo" else "token")
    logprobs, old = jnp.array([[0.0, -800.0]]), jnp.array([[-800.0, 0.0]])
    for advantage in (1.0, -1.0, 0.0):
        fields = {
            "old": old,
            "rollout": old,
            "advantages": jnp.full((1, 2), advantage),
            "high_entropy": jnp.array([[True, False]]),
            "sequence": jnp.zeros((1, 2)),
        }

        def loss(x: jax.Array, fields: Any = fields) -> jax.Array:
            return SURROGATES[surrogate](x, fields, config)[0].sum()

        value, gradient = jax.value_and_grad(loss)(logprobs)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))
        if surrogate == "vespo":  # whose sequences are products of many
            fields["sequence"] = jnp.array([[800.0, -800.0]])
            assert np.isfinite(jax.grad(loss)(logprobs)).all()


def test_vespo_weighs_a_sequence_most_near_its_own_policy() -> None:
    config = ObjectiveConfig(surrogate="vespo", ratio="seq_prod")

    def weight(log_w: float, advantage: float) -> float:
        fields = {"advantages": jnp.full((1, 2), advantage), "sequence": jnp.full((1, 2), log_w)}
        slope = jax.grad(lambda x: SURROGATES["vespo"](x, fields, config)[0].sum())(jnp.array([[-0.5, -3.0]]))
        np.testing.assert_allclose(slope[0, 0], slope[0, 1])
        return float(-slope[0, 0] / advantage)

    for advantage, k, rate in ((2.0, 2, 3), (-1.0, 3, 2)):
        for w in (0.1, 0.7, 1.0, 1.9, 4.0):
            want = np.exp(rate) * w**k * np.exp(-rate * w)
            np.testing.assert_allclose(weight(float(np.log(w)), advantage), want, rtol=1e-4)
        assert weight(0.0, advantage) == 1.0
        assert weight(20.0, advantage) == 0.0  # e^20 as likely as at sampling


def test_reinforce_ignores_the_old_policy() -> None:
    logprobs = jnp.array([[-0.3, -2.0]])
    fields = {"old": jnp.full((1, 2), jnp.nan), "advantages": jnp.array([[2.0, -1.0]])}
    value, indicators = SURROGATES["reinforce"](logprobs, fields, CONFIG)
    np.testing.assert_allclose(value, [[0.6, -2.0]])
    assert indicators == {}
