"""What is reported of the log-probs of sampling and training, by hand in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rlvr.algo.correction import CorrectionConfig
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.learner.batch import Row, TrainBatch, make_batches
from rlvr.learner.loss import Totals, chunk_loss, finish_metrics, make_fields

LENGTHS, ADVANTAGES = (3, 1, 4), (1.0, 0.0, -2.0)
RNG = np.random.default_rng(5)
ROLLOUT, NOW = ([RNG.normal(-1.5, 0.5, n).astype(np.float32) for n in LENGTHS] for _ in range(2))
ENTROPIES = [RNG.random(n) for n in LENGTHS]


def report(advantages: tuple[float, ...] = ADVANTAGES, objective: ObjectiveConfig | None = None) -> dict[str, float]:
    """The metrics of a step of two micro-batches, whose loss is made of chunks of 3 columns."""
    objective = objective or ObjectiveConfig(aggregation="token_mean")
    rows = [
        Row((1, 2), np.arange(n, dtype=np.int32), ROLLOUT[i], advantages[i], i, proximal_logprobs=NOW[i])
        for i, n in enumerate(LENGTHS)
    ]
    batches, places = make_batches(rows, micro_rows=1, length=6, weights=np.full(3, 1 / sum(LENGTHS)))
    assert len(batches) > 1
    seen = None
    for index, batch in enumerate(batches):
        own = _of_batch(objective, batch, [(i, at.scored) for i, at in enumerate(places) if at.batch == index])
        add = (jnp.add, jnp.maximum)
        seen = own if seen is None else tuple(jax.tree.map(f, a, b) for f, a, b in zip(add, seen, own, strict=True))
    return {name: float(value) for name, value in finish_metrics(*seen).items()}


def _of_batch(objective: ObjectiveConfig, batch: TrainBatch, at: list[tuple[int, int]]) -> tuple:
    logprobs, entropies = (np.full(batch.mask.shape, np.nan, np.float32) for _ in range(2))
    for i, scored in at:
        logprobs[0, scored : scored + LENGTHS[i]] = NOW[i]
        entropies[0, scored : scored + LENGTHS[i]] = ENTROPIES[i]
    fields = make_fields(objective, batch, Totals(np.float32(8), np.float32(8)), jnp.asarray(logprobs))
    seen = None
    for start in range(0, batch.mask.shape[1], 3):
        part = (slice(None), slice(start, start + 3))
        chunk = {name: x[part] for name, x in fields.items()}
        own = chunk_loss(objective, jnp.asarray(logprobs[part]), jnp.asarray(entropies[part]), chunk)[1]
        add = (jnp.add, jnp.maximum)
        seen = own if seen is None else tuple(jax.tree.map(f, a, b) for f, a, b in zip(add, seen, own, strict=True))
    return seen


def test_the_gap_and_the_weights_by_hand() -> None:
    d = [now.astype(np.float64) - then for now, then in zip(NOW, ROLLOUT, strict=True)]
    w = np.exp(np.concatenate(d))
    want = {
        "gap/mean": np.mean(np.abs(np.log(w))),
        "gap/max": np.max(np.abs(np.log(w))),
        "gap/kl": -np.mean(np.log(w)),
        "gap/k3": np.mean(w - 1 - np.log(w)),
        "gap/chi2": np.mean(w**2) - 1,
        "gap/ess": 1 / np.mean((w / w.mean()) ** 2),
        "gap/weight_min": w.min(),
        "gap/weight_mean": w.mean(),
        "gap/weight_max": w.max(),
        # Of a sequence, log (policy perplexity / rollout perplexity) is the difference of mean negative log-probs.
        "gap/log_perplexity": np.mean([-x.mean() for x in d]),
        "kl/update": np.mean(1 / w - 1 + np.log(w)),
    }
    told = report()
    for name, value in want.items():
        np.testing.assert_allclose(told[name], value, rtol=2e-6, err_msg=name)
    assert 0.3 < told["gap/ess"] < 0.95 and told["gap/weight_min"] < 0.7 < 1.4 < told["gap/weight_max"]


def test_entropy_is_split_by_the_sign_of_the_advantage() -> None:
    told = report()
    np.testing.assert_allclose(told["rollout/entropy"], np.mean(np.concatenate(ENTROPIES)), rtol=1e-6)
    np.testing.assert_allclose(told["rollout/entropy_positive"], np.mean(ENTROPIES[0]), rtol=1e-6)
    np.testing.assert_allclose(told["rollout/entropy_negative"], np.mean(ENTROPIES[2]), rtol=1e-6)
    assert np.isnan(report((1.0, 0.0, 0.0))["rollout/entropy_negative"])  # of nothing there is no mean


def test_what_has_no_weight_is_in_no_part_of_the_loss() -> None:
    objective = ObjectiveConfig(kl="k2", kl_coef=0.1, entropy_coef=0.1)
    far = np.array([[-1.0, -2.0, -3.0, -4.0]], np.float32)
    names = ("old", "rollout", "reference", "advantages", "entropy_coef", "kl_coef", "sampled", "shares")
    fields = {name: jnp.full((1, 4), 0.5) for name in names} | {"mask": jnp.ones((1, 4), bool)}

    def loss(logprobs: jax.Array, entropies: jax.Array) -> jax.Array:
        return chunk_loss(objective, logprobs, entropies, fields | {"weights": jnp.array([[1.0, 1.0, 0.0, 0.0]])})[0]

    slopes = jax.grad(loss, argnums=(0, 1))(jnp.asarray(far), jnp.asarray(-far))
    for slope in slopes:
        assert np.all(np.asarray(slope)[0, :2] != 0) and np.all(np.asarray(slope)[0, 2:] == 0)


def test_masked_and_truncated_tokens_are_counted_apart() -> None:
    w = np.exp(np.concatenate(NOW).astype(np.float64) - np.concatenate(ROLLOUT))
    above = np.mean(w > 1.1)
    assert 0 < above < 1
    for rule, masked in (("tis", 0.0), ("mis", above)):
        correction = CorrectionConfig(rule, high=1.1)
        told = report(objective=ObjectiveConfig(old="recomputed", aggregation="token_mean", correction=correction))
        np.testing.assert_allclose([told["correction/changed"], told["correction/masked"]], [above, masked], rtol=1e-6)
