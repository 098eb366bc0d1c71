"""The update against a naive loss, and everything that must not change it."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from rlvr import errors
from rlvr.algo.aggregation import AGGREGATIONS
from rlvr.algo.correction import CorrectionConfig
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.selection import SelectionConfig
from rlvr.learner.batch import Row, TrainBatch, make_batches
from rlvr.learner.learner import Learner
from rlvr.learner.loss import Totals
from rlvr.learner.optimizer import OptimizerConfig, make_optimizer
from rlvr.learner.state import TrainState
from rlvr.learner.update import UpdateConfig, make_update_step
from rlvr.mesh import AXES
from rlvr.policy.router import BALANCE_LOSSES, z_loss
from rlvr.policy.transformer import Policy

Tiny = Callable[[str], tuple[Policy, Any]]
Rows = Callable[..., list[Row]]
T, C, BUDGET, TEMPERATURE = 16, 8, 12, 0.8
# Float32 sums of some hundred terms, in another order or another matrix shape: gradients here are of size 0.1 to 1.
SAME = {"rtol": 1e-4, "atol": 5e-6}


def gradient_of(before: Any, after: Any, epsilon: float) -> Any:
    """Undoes the descent of `conftest.DESCENT`: step = -epsilon * g / (|g| + epsilon)."""

    def undo(old: jax.Array, new: jax.Array) -> np.ndarray:
        step = np.asarray(old, np.float64) - np.asarray(new, np.float64)
        return step / (1 - np.abs(step) / epsilon)

    return jax.tree.map(undo, before, after)


def assert_same_tree(a: Any, b: Any, **tolerance: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def largest(tree: Any) -> float:
    return max(float(np.max(np.abs(x))) for x in jax.tree.leaves(tree))


class Laid(NamedTuple):
    """A step's micro-batches and denominators."""

    batches: list[TrainBatch]
    totals: Totals


def lay_out(
    rows: list[Row],
    *,
    micro_rows: int | None = None,
    length: int = T,
    aggregation: str = "seq_sum_norm",
    budget: int = BUDGET,
    reference: list[np.ndarray] | None = None,
) -> Laid:
    sampled, groups = np.array([len(row.completion) for row in rows]), np.array([row.group for row in rows])
    weights = AGGREGATIONS[aggregation](sampled, groups, budget)
    micro_rows = micro_rows or len(rows)
    batches, _ = make_batches(rows, micro_rows=micro_rows, length=length, weights=weights, reference=reference)
    run = sum(len(row.prompt) + len(row.completion) - 1 for row in rows)
    return Laid(batches, Totals(np.float32(sampled.sum()), np.float32(run)))


class Stepper:
    """Takes one descent step from the tiny policy's parameters; compiles once for each shape of batch."""

    def __init__(self, policy: Policy, params: Any, objective: ObjectiveConfig, descent: OptimizerConfig):
        self.optimizer = make_optimizer(descent, 10)
        self.params = params
        self.step = make_update_step(policy, self.optimizer, objective, temperature=TEMPERATURE, chunk=9)
        self.epsilon = descent.epsilon

    def __call__(self, laid: Laid) -> tuple[Any, dict[str, Any]]:
        """Returns (the gradient that the step took, metrics)."""
        params = jax.tree.map(jnp.copy, self.params)
        state = TrainState(params, self.optimizer.init(params))
        state, metrics = self.step(state, laid.batches, laid.totals)
        return gradient_of(self.params, state.params, self.epsilon), metrics


@pytest.fixture(scope="module")
def shallow_step(tiny_policy: Tiny, descent: OptimizerConfig) -> Stepper:
    return Stepper(*tiny_policy("shallow"), ObjectiveConfig(), descent)


FULL = ObjectiveConfig(
    kl="k3", kl_coef=0.05, entropy_coef=0.02, balance_coef=0.03, z_coef=0.01, clip_low=0.1, clip_high=0.3
)


def naive_loss(
    policy: Policy, params: Any, rows: list[Row], reference: list[np.ndarray], weights: list[float]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The objective as the papers write it: whole rows, full log-softmax, no masks, a loop over sequences."""
    tokens = np.zeros((len(rows), T), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row.prompt) + len(row.completion)] = [*row.prompt, *row.completion]
    lengths = np.array([len(row.prompt) + len(row.completion) for row in rows])
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), tokens.shape)
    output = policy.forward(params, tokens, positions, counts=positions < lengths[:, None] - 1)
    log_p = jax.nn.log_softmax(policy.logits(params, output.hidden) / TEMPERATURE, axis=-1)
    policy_loss, kl, entropy, high, low = (jnp.float32(0) for _ in range(5))
    for i, row in enumerate(rows):
        start, count = len(row.prompt), len(row.completion)
        at = log_p[i, start - 1 : start - 1 + count]
        logprobs = at[np.arange(count), row.completion]
        ratio = jnp.exp(logprobs - row.old_logprobs)
        clipped = jnp.clip(ratio, 1 - FULL.clip_low, 1 + FULL.clip_high)
        policy_loss -= weights[i] * jnp.sum(jnp.minimum(ratio * row.advantage, clipped * row.advantage))
        x = logprobs - reference[i]
        kl += weights[i] * jnp.sum(jnp.exp(-x) + x - 1)
        entropy -= jnp.sum(jnp.exp(at) * at)
        outside = clipped != ratio
        high += jnp.sum(outside & (ratio > 1) & (row.advantage > 0))
        low += jnp.sum(outside & (ratio < 1) & (row.advantage < 0))
    n = sum(len(row.completion) for row in rows)
    balance, z = BALANCE_LOSSES["switch"](output.router, 2), z_loss(output.router)
    loss = policy_loss + FULL.kl_coef * kl - FULL.entropy_coef * entropy / n
    loss += FULL.balance_coef * balance + FULL.z_coef * z
    return loss, {
        "loss/policy": policy_loss,
        "rollout/entropy": entropy / n,
        "clip/high": high / n,
        "clip/low": low / n,
        "moe/balance_loss": balance,
        "moe/z_loss": z,
    }


def own_logprobs(policy: Policy, params: Any, rows: list[Row]) -> list[np.ndarray]:
    """Log-probs of each row's completion from a full forward pass of rows of their own."""
    tokens = np.zeros((len(rows), T), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row.prompt) + len(row.completion)] = [*row.prompt, *row.completion]
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), tokens.shape)
    logits = jax.jit(lambda p: policy.logits(p, policy.forward(p, tokens, positions).hidden))(params)
    log_p = np.asarray(jax.nn.log_softmax(logits / TEMPERATURE, axis=-1))
    return [log_p[i, len(r.prompt) - 1 + np.arange(len(r.completion)), r.completion] for i, r in enumerate(rows)]


@pytest.mark.parametrize("shared", [False, True], ids=["packed", "shared_prompts"])
def test_gradient_and_metrics_are_those_of_the_naive_loss(
    tiny_policy: Tiny, make_rows: Rows, descent: OptimizerConfig, shared: bool
) -> None:
    policy, params = tiny_policy("mixed")
    rows = make_rows(6, shared=shared)
    # An old policy and a reference not far from the policy.
    own, rng = own_logprobs(policy, params, rows), np.random.default_rng(0)
    gaps, shifts = ([0.3 * rng.normal(size=len(x)) for x in own] for _ in range(2))
    old, reference = ([x + noise for x, noise in zip(own, by, strict=True)] for by in (gaps, shifts))
    rows = [row._replace(old_logprobs=logprobs) for row, logprobs in zip(rows, old, strict=True)]
    laid = lay_out(rows, micro_rows=2, length=24, aggregation="seq_mean_token_mean", reference=reference)
    laid = laid._replace(
        totals=laid.totals._replace(entropy_coef=np.float32(FULL.entropy_coef), kl_coef=np.float32(FULL.kl_coef))
    )
    (batch,) = laid.batches  # the router's losses are not linear in the tokens: of one micro-batch they are exact
    prompts = {row.prompt for row in rows}
    assert len(prompts) == (2 if shared else 6)
    run = sum(len(prompt) for prompt in prompts) + sum(len(row.completion) - 1 for row in rows)
    assert np.sum(batch.counts > 0) == run and np.sum(batch.counts) == laid.totals.run
    got, metrics = Stepper(policy, params, FULL, descent)(laid)

    weights = [1 / (len(rows) * len(row.completion)) for row in rows]
    run = jax.jit(jax.grad(lambda p: naive_loss(policy, p, rows, reference, weights), has_aux=True))
    want, expected = run(params)
    assert largest(want) > 0.05
    assert_same_tree(got, want, rtol=1e-3, atol=2e-5)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert 0 < metrics["clip/high"] < 0.5 and 0 < metrics["clip/low"] < 0.5
    norm = np.sqrt(sum(float(np.sum(np.square(g))) for g in jax.tree.leaves(want)))
    np.testing.assert_allclose(metrics["optimizer/grad_norm"], norm, rtol=1e-4)
    assert metrics["optimizer/skipped"] == 0
    np.testing.assert_allclose(metrics["gap/max"], np.abs(np.concatenate(gaps)).max(), rtol=1e-3)
    np.testing.assert_allclose(metrics["gap/mean"], np.abs(np.concatenate(gaps)).mean(), rtol=1e-3)


@pytest.mark.parametrize(("micro_rows", "length"), [(3, T), (1, T), (1, 40)])
def test_micro_batches_rows_and_order_change_nothing(
    shallow_step: Stepper, make_rows: Rows, micro_rows: int, length: int
) -> None:
    rows = make_rows(8)
    whole, metrics = shallow_step(lay_out(rows))
    assert largest(whole) > 0.02
    laid = lay_out(rows, micro_rows=micro_rows, length=length)
    assert len(laid.batches) > 1  # of 3 rows, the last batch is not full
    split, split_metrics = shallow_step(laid)
    assert_same_tree(split, whole, **SAME)
    order = np.random.default_rng(0).permutation(8)
    shuffled, _ = shallow_step(lay_out([rows[i] for i in order], micro_rows=micro_rows, length=length))
    assert_same_tree(shuffled, whole, **SAME)
    assert metrics.keys() == split_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(split_metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_garbage_in_padding_changes_no_bit(shallow_step: Stepper, make_rows: Rows) -> None:
    laid = lay_out(make_rows(8))
    (batch,) = laid.batches
    clean, _ = shallow_step(laid)
    inside = batch.segments >= 0
    assert 0 < np.mean(inside) < 0.7
    poisoned = batch._replace(
        tokens=np.where(inside, batch.tokens, 55),
        positions=np.where(inside, batch.positions, 3),
        targets=np.where(batch.mask, batch.targets, 11),
        sources=np.where(batch.mask, batch.sources, T - 1),
        old_logprobs=np.where(batch.mask, batch.old_logprobs, np.nan),
        reference_logprobs=np.where(batch.mask, batch.reference_logprobs, -np.inf),
        advantages=np.where(batch.mask, batch.advantages, np.inf),
        weights=np.where(batch.mask, batch.weights, 1e9),
    )
    dirty, metrics = shallow_step(Laid([poisoned], laid.totals))
    assert metrics["optimizer/skipped"] == 0
    assert_same_tree(dirty, clean, rtol=0, atol=0)


def make_learner(
    policy: Policy,
    optimizer: OptimizerConfig,
    mesh: Mesh,
    objective: ObjectiveConfig | None = None,
    **update: int,
) -> Learner:
    return Learner(
        policy,
        objective or ObjectiveConfig(aggregation="seq_sum_norm"),
        optimizer,
        UpdateConfig(**{"row_tokens": 32, "micro_tokens": 32, "logprob_chunk": 3, **update}),
        steps=10,
        max_length=T,
        max_columns=C,
        temperature=TEMPERATURE,
        mesh=mesh,
    )


@pytest.fixture(scope="module")
def learner(tiny_policy: Tiny, descent: OptimizerConfig) -> Learner:
    mesh = jax.make_mesh((1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:1])
    return make_learner(tiny_policy("shallow")[0], descent, mesh)


@pytest.mark.usefixtures("one_device")
def test_rows_of_advantage_zero_are_left_out_of_the_work_only(
    shallow_step: Stepper, make_rows: Rows, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = shallow_step.params
    rows = make_rows(8, zeros=(0, 3, 4, 6), shared=True)  # of either group
    whole, _ = shallow_step(lay_out(rows, budget=C))
    original, seen = learner._update, []

    def note(state: Any, batches: Any, *rest: Any) -> Any:
        seen.extend(batches)
        return original(state, seen, *rest)

    monkeypatch.setattr(learner, "_update", note)
    state, _ = learner.update(learner.fresh(jax.tree.map(jnp.copy, params)), rows)
    # Both prompts once, and the completions of the four others, without their last tokens.
    live = [row for row in rows if row.advantage]
    assert sum(int(np.sum(batch.segments >= 0)) for batch in seen) == sum(
        len(prompt) for prompt in {row.prompt for row in live}
    ) + sum(len(row.completion) - 1 for row in live)
    assert_same_tree(gradient_of(params, state.params, shallow_step.epsilon), whole, **SAME)
    # Where nothing has a gradient nothing moves.
    before = jax.tree.map(np.asarray, state.params)
    state, read = learner.update(state, make_rows(8, zeros=range(8)))
    metrics = read()
    assert_same_tree(state.params, before, rtol=0, atol=0)
    assert metrics["optimizer/grad_norm"] == 0.0 and metrics["optimizer/skipped"] == 0.0


@pytest.mark.usefixtures("one_device")
def test_non_finite_updates_are_skipped_counted_and_at_last_refused(
    make_rows: Rows, tiny_policy: Tiny, learner: Learner
) -> None:
    params = tiny_policy("shallow")[1]
    rows = make_rows(8)
    bad = [rows[0]._replace(old_logprobs=np.full(len(rows[0].completion), np.nan, np.float32)), *rows[1:]]
    state, read = learner.update(learner.fresh(jax.tree.map(jnp.copy, params)), bad)
    metrics = read()
    assert metrics["optimizer/skipped"] == 1.0
    assert_same_tree(state.params, params, rtol=0, atol=0)
    state, read = learner.update(state, rows)  # a good one in between starts the count again
    metrics = read()
    assert metrics["optimizer/skipped"] == 0.0
    assert largest(jax.tree.map(np.subtract, state.params, params)) > 1e-3
    state, read = learner.update(state, bad)
    metrics = read()
    assert metrics["optimizer/skipped"] == 1.0
    with pytest.raises(FloatingPointError, match="2 updates in a row"):
        learner.update(state, bad)[1]()


@pytest.mark.usefixtures("one_device")
def test_scores_come_back_row_by_row(make_rows: Rows, tiny_policy: Tiny, learner: Learner) -> None:
    policy, params = tiny_policy("shallow")
    rows = [*make_rows(8)[:7], *make_rows(7, shared=True)]  # some micro-batches, the last not full
    scores = learner.score(params, rows)
    assert [len(s) for s in scores] == [len(row.completion) for row in rows]
    for got, want in zip(scores, own_logprobs(policy, params, rows), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_row_over_the_longest_is_refused(make_rows: Rows, tiny_policy: Tiny, learner: Learner) -> None:
    row = make_rows(1)[0]._replace(prompt=(1,) * T)
    with pytest.raises(errors.DataError, match=f"longer than the {T} allowed"):
        learner.score(tiny_policy("shallow")[1], [row])


def test_learning_rate_is_the_schedules(tiny_policy: Tiny, one_device: Mesh) -> None:
    config = OptimizerConfig(learning_rate=0.4, warmup_steps=1, decay="linear")
    learner = make_learner(tiny_policy("shallow")[0], config, one_device)
    np.testing.assert_allclose([learner.learning_rate(s) for s in (0, 1, 10)], [0.2, 0.4, 0.0], atol=1e-7)


def near(own: list[np.ndarray], seed: int, scale: float = 0.4) -> list[np.ndarray]:
    """Log-probs of a policy not far from another."""
    rng = np.random.default_rng(seed)
    return [(x + scale * rng.normal(size=len(x))).astype(np.float32) for x in own]


def test_statistics_of_sequences_and_of_the_minibatch(
    tiny_policy: Tiny, make_rows: Rows, descent: OptimizerConfig, one_device: Mesh
) -> None:
    """Sequence ratios, dropped sequences, a quantile over all tokens and a weighted k3, as written for whole rows."""
    policy, params = tiny_policy("shallow")
    rows, rho, delta = make_rows(8, shared=True), 0.5, 0.05
    own = own_logprobs(policy, params, rows)
    old, reference = near(own, 0), near(own, 1)
    rows = [row._replace(old_logprobs=x) for row, x in zip(rows, old, strict=True)]
    objective = ObjectiveConfig(
        ratio="seq_geo",
        clip_low=0.1,
        clip_high=0.1,
        kl="k3_is",
        kl_coef=0.1,
        correction=CorrectionConfig(opsm=delta),
        selection=SelectionConfig(top_entropy=rho),
    )
    objective.validate()

    def naive(params: Any) -> jax.Array:
        tokens = np.zeros((len(rows), T), np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row.prompt) + len(row.completion)] = [*row.prompt, *row.completion]
        positions = np.broadcast_to(np.arange(T, dtype=np.int32), tokens.shape)
        log_p = jax.nn.log_softmax(
            policy.logits(params, policy.forward(params, tokens, positions).hidden) / TEMPERATURE
        )
        spans = [log_p[i, len(r.prompt) - 1 + np.arange(len(r.completion))] for i, r in enumerate(rows)]
        entropies = [jax.lax.stop_gradient(-jnp.sum(jnp.exp(x) * x, axis=-1)) for x in spans]
        threshold = jnp.quantile(jnp.concatenate(entropies), 1 - rho)
        loss = jnp.float32(0)
        for i, row in enumerate(rows):
            x = spans[i][np.arange(len(row.completion)), row.completion]
            share = jnp.mean(jnp.where(entropies[i] >= threshold, x - jax.lax.stop_gradient(x), 0.0))
            s, a = jnp.exp(jnp.mean(jax.lax.stop_gradient(x) - old[i])), row.advantage
            clipped = ((s > 1.1) & (a > 0)) | ((s < 0.9) & (a < 0))
            dropped = (a < 0) & (jnp.mean(old[i] - jax.lax.stop_gradient(x)) > delta)
            policy_loss = jnp.where(clipped | dropped, 0.0, -s * a * share)  # the gradient only, not the value
            d = x - reference[i]
            kl = jnp.mean(jnp.exp(x - old[i]) * (jnp.exp(-d) + d - 1))
            loss += (policy_loss + 0.1 * kl) / len(rows)
        return loss

    learner = make_learner(policy, descent, one_device, objective)
    state, read = learner.update(learner.fresh(jax.tree.map(jnp.copy, params)), rows, reference)
    want = jax.jit(jax.grad(naive))(params)
    assert largest(want) > 0.02
    assert_same_tree(gradient_of(params, state.params, descent.epsilon), want, rtol=1e-3, atol=2e-5)
    metrics = read()
    assert 0 < metrics["correction/opsm"] < 1 and 0 < metrics["clip/high"] + metrics["clip/low"] < 1


def test_minibatches_against_the_policy_before_the_first(
    tiny_policy: Tiny, make_rows: Rows, descent: OptimizerConfig, one_device: Mesh
) -> None:
    """Decoupled PPO with weights, chosen tokens and two optimizer steps: the layout of the rows changes nothing."""
    policy, params = tiny_policy("shallow")
    rows = make_rows(8, shared=True)
    own = own_logprobs(policy, params, rows)
    rows = [row._replace(old_logprobs=x) for row, x in zip(rows, near(own, 0), strict=True)]
    rows = [*rows[0::2], *rows[1::2]]  # group by group
    objective = ObjectiveConfig(
        old="recomputed",
        aggregation="token_mean",
        clip_low=0.01,
        clip_high=0.01,
        correction=CorrectionConfig("tis", level="seq_geo", high=1.1),
        selection=SelectionConfig(covariance="clip_cov", low=0.2, share=0.3),
    )
    objective.validate()
    gentle = dataclasses.replace(descent, learning_rate=descent.learning_rate * 0.02)

    def run(rows: list[Row], **update: int) -> tuple[Any, dict[str, float]]:
        learner = make_learner(policy, gentle, one_device, objective, minibatches=2, **update)
        state, read = learner.update(learner.fresh(jax.tree.map(jnp.copy, params)), rows)
        return jax.tree.map(np.subtract, jax.device_get(state.params), jax.device_get(params)), read()

    step, metrics = run(rows)
    order = [2, 0, 3, 1, 7, 6, 4, 5]  # within the minibatches
    other, others = run([rows[i] for i in order], row_tokens=16, micro_tokens=64)
    assert largest(step) > 0.02
    assert_same_tree(other, step, **SAME)
    assert metrics.keys() == others.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=2e-3, atol=1e-5, err_msg=name)
    # In the second minibatch the ratio is no longer one; the weights never touch that.
    assert 0 < metrics["clip/high"] + metrics["clip/low"] < 1
    assert 0 < metrics["correction/changed"] < 1 and metrics["selection/covariance"] > 0
