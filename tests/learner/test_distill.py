"""Distillation in the update: against naive losses of the whole policy, in float64 by differences, and in packing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from launch.benches.rows import largest_buffer
from rlvr.algo.aggregation import AGGREGATIONS
from rlvr.algo.distill import DistillConfig, divergence, kl
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.learner.batch import Row, make_batches
from rlvr.learner.learner import Learner
from rlvr.learner.logprobs import _loss_of_logits
from rlvr.learner.loss import Totals, chunk_loss, make_fields
from rlvr.learner.optimizer import OptimizerConfig, make_optimizer
from rlvr.learner.state import TrainState
from rlvr.learner.update import Teaching, UpdateConfig, make_update_step, micro_loss
from rlvr.policy.config import PolicyConfig
from rlvr.policy.transformer import Policy

Tiny = Callable[[str], tuple[Policy, Any]]
T, TEMPERATURE, N = 24, 0.8, 6
HINT = 96  # an id that only the teacher's prompts have
rng = np.random.default_rng(3)
COMPLETIONS = [rng.integers(0, 90, size=n).astype(np.int32) for n in (3, 1, 5, 2, 4, 3)]
PLAIN = [(5, 6, 7), (5, 6, 7), (8,), (8,), (9, 10), (9, 10)]
SHOWN = [(HINT, 11, 12, *prompt) for prompt in PLAIN]
OBJECTIVE = ObjectiveConfig(aggregation="token_mean", clip_low=1.0, clip_high=1e3)
sg = jax.lax.stop_gradient


def log_p(policy: Policy, params: Any, prompts: Any) -> list[jax.Array]:
    """[C, V] of each completion behind its prompt, from rows of their own."""
    tokens = np.zeros((N, T), np.int32)
    for i, (prompt, completion) in enumerate(zip(prompts, COMPLETIONS, strict=True)):
        tokens[i, : len(prompt) + len(completion)] = [*prompt, *completion]
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), tokens.shape)
    logits = policy.logits(params, policy.forward(params, tokens, positions).hidden)
    whole = jax.nn.log_softmax(logits / TEMPERATURE, axis=-1)
    starts = [len(prompt) - 1 for prompt in prompts]
    return [whole[i, start : start + len(COMPLETIONS[i])] for i, start in enumerate(starts)]


def of(logits: list[jax.Array]) -> list[jax.Array]:
    return [x[np.arange(len(c)), c] for x, c in zip(logits, COMPLETIONS, strict=True)]


ADVANTAGES = rng.normal(size=N)


def naive(distill: DistillConfig, policy: Policy, params: Any, start: Any, old: list[np.ndarray]) -> jax.Array:
    """The papers' losses, written out: token means over each side."""
    plain, shown = log_p(policy, params, PLAIN), log_p(policy, params, SHOWN)
    count = sum(len(c) for c in COMPLETIONS)

    def gain(now: list[jax.Array]) -> Any:
        return sum(jnp.sum(jnp.exp(x - o)) * a for x, o, a in zip(now, old, ADVANTAGES, strict=True)) / count

    if distill.method == "pi":
        apart = sum(jnp.sum(kl(t, sg(s))) for t, s in zip(shown, plain, strict=True)) / count
        teacher = -gain(of(shown)) + distill.coef * apart
        apart = sum(jnp.sum(kl(sg(t), s)) for t, s in zip(shown, plain, strict=True)) / count
        student = -gain(of(plain)) + distill.coef * apart
        return distill.alpha * teacher + (1 - distill.alpha) * student
    taught = [sg(x) for x in (log_p(policy, start, SHOWN) if distill.teacher == "start" else shown)]
    far = sum(jnp.sum(divergence(distill, s, t, None)) for s, t in zip(plain, taught, strict=True)) / count
    return -distill.reward * gain(of(plain)) + distill.coef * far


CASES = {
    "opsd_reward": DistillConfig("on_policy", "full", coef=0.3),
    "opsd": DistillConfig("on_policy", "full", teacher="start", beta=0.4),
    "pi_joint": DistillConfig("pi", "full", coef=0.3, alpha=0.3),
    "pi_student": DistillConfig("pi", "full", coef=0.3, alpha=0.0),
}


def make_rows(distill: DistillConfig, old: list[np.ndarray]) -> list[Row]:
    """The rows that `rlvr.distillation` makes."""
    parts = zip(PLAIN, SHOWN, COMPLETIONS, old, ADVANTAGES, strict=True)
    if distill.method == "on_policy":
        return [Row(p, c, o, a, i // 2, other_prompt=s) for i, (p, s, c, o, a) in enumerate(parts)]
    rows = []
    for i, (plain, shown, c, o, a) in enumerate(parts):
        both = distill.alpha not in (0.0, 1.0)
        if distill.alpha > 0:
            weight = 2 * distill.alpha if both else 1.0
            rows.append(Row(shown, c, o, a, i, weight=weight, borrowed=False, other_prompt=plain))
        if distill.alpha < 1:
            weight = 2 - 2 * distill.alpha if both else 1.0
            rows.append(Row(plain, c, o, a, N + i, weight=weight, borrowed=True, other_prompt=shown))
    return rows


def gradient(
    policy: Policy, params: Any, start: Any, distill: DistillConfig, rows: list[Row], descent: OptimizerConfig
) -> tuple[Any, dict[str, Any]]:
    """The gradient that an update step takes; see `tests.learner.conftest.descent`."""
    given = lambda own, frozen, teacher: own if teacher is None else teacher  # noqa: E731
    optimizer = make_optimizer(descent, 10)
    step = make_update_step(
        policy,
        optimizer,
        OBJECTIVE,
        temperature=TEMPERATURE,
        chunk=7,
        distill=distill,
        teaching=Teaching(distill, policy, given),
    )
    lengths, groups = np.array([len(row.completion) for row in rows]), np.array([row.group for row in rows])
    weights = AGGREGATIONS[OBJECTIVE.aggregation](lengths, groups, 8) * np.array([row.weight for row in rows])
    batches, _ = make_batches(rows, micro_rows=1, length=T, weights=weights)
    assert len(batches) > 1
    copy = jax.tree.map(jnp.copy, params)
    totals = Totals(np.float32(lengths.sum()), np.float32(sum(row.run_tokens for row in rows)))
    teacher = start if distill.teacher == "start" else None
    state, metrics = step(TrainState(copy, optimizer.init(copy)), batches, totals, teacher=teacher)

    def undo(before: jax.Array, after: jax.Array) -> np.ndarray:
        moved = np.asarray(before, np.float64) - np.asarray(after, np.float64)
        return moved / (1 - np.abs(moved) / descent.epsilon)

    return jax.tree.map(undo, params, state.params), metrics


@pytest.fixture(scope="module")
def setting(tiny_policy: Tiny) -> tuple[Policy, Any, Any, list[np.ndarray]]:
    """(policy, parameters, those of a teacher not far from it, log-probs at sampling)."""
    policy, params = tiny_policy("shallow")
    noise = np.random.default_rng(5)
    start = jax.tree.map(lambda x: x + 0.1 * noise.normal(size=x.shape).astype(np.float32), params)
    drawn = jax.jit(lambda p: of(log_p(policy, p, SHOWN)))(params)
    return policy, params, start, [np.asarray(x + 0.2 * noise.normal(size=x.shape), np.float32) for x in drawn]


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_papers_losses(setting: Any, descent: OptimizerConfig, name: str) -> None:
    policy, params, start, old = setting
    distill = CASES[name]
    got, metrics = gradient(policy, params, start, distill, make_rows(distill, old), descent)
    want = jax.jit(jax.grad(lambda p: naive(distill, policy, p, start, old)))(params)
    assert max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(want)) > 0.02
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), got, want)
    assert metrics["distill/divergence"] > 0.01


@pytest.mark.parametrize("name", ["opsd_reward", "pi_joint"])
def test_a_gradient_through_the_other_side_would_be_another(
    setting: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of shared parameters: the comparison above can tell whether the other side is stopped."""
    policy, params, start, old = setting
    stopped = jax.jit(jax.grad(lambda p: naive(CASES[name], policy, p, start, old)))(params)
    monkeypatch.setitem(globals(), "sg", lambda x: x)
    leaking = jax.jit(jax.grad(lambda p: naive(CASES[name], policy, p, start, old)))(params)
    gaps = [float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (stopped, leaking)), strict=True)]
    assert max(gaps) > 1e-2


@pytest.mark.parametrize("borrowed", [False, True])
@pytest.mark.parametrize("distill", [CASES["opsd"], CASES["opsd_reward"], CASES["pi_joint"]], ids=["jsd", "kl", "pi"])
def test_gradient_by_the_logits_is_that_of_differences(distill: DistillConfig, borrowed: bool) -> None:
    """In float64, of a chunk of three tokens with an entropy bonus and a mask."""
    with jax.enable_x64(True):
        draws = np.random.default_rng(0)
        logits, other = jnp.asarray(draws.normal(size=(1, 3, 5))), draws.normal(size=(1, 3, 5))
        log_q = jax.nn.log_softmax(jnp.asarray(other), axis=-1)
        ones = jnp.ones((1, 3))
        mask = jnp.asarray([[True, True, False]])
        fields = {
            "mask": mask,
            "rollout": -ones,
            "old": -ones,
            "reference": -ones,
            "advantages": jnp.asarray([[0.7, -0.4, 9.0]]),
            "weights": jnp.asarray([[0.3, 0.2, 9.0]]),
            "shares": ones,
            "sampled": 2 * ones,
            "entropy_coef": 0.1 * ones,
            "kl_coef": 0.0 * ones,
            "borrowed": jnp.full((1, 3), borrowed),
        }
        objective = ObjectiveConfig(surrogate="plain", entropy_coef=0.1)
        loss = functools.partial(chunk_loss, objective, distill=distill)
        ids = jnp.asarray([[1, 4, 0]])

        def run(x: jax.Array) -> Any:
            compare = lambda own: divergence(distill, own, log_q, fields["borrowed"])  # noqa: E731
            return _loss_of_logits(loss, x, ids, fields, compare)

        _, got = run(logits)
        for at in np.ndindex(1, 3, 5):
            step = jnp.zeros((1, 3, 5)).at[at].set(1e-6)
            want = (run(logits + step)[0][0] - run(logits - step)[0][0]) / 2e-6
            np.testing.assert_allclose(got[at], want, rtol=1e-6, atol=1e-9)


def test_the_sampled_form_of_pi_distill_is_the_papers_loss() -> None:
    """By differences in float64: log-probs of the tokens are the parameters, the teacher's side k3+, the student's the
    forward k3, each against the other's log-probs, which do not move."""
    distill = DistillConfig("pi", coef=0.3, alpha=0.25)
    objective = ObjectiveConfig(surrogate="plain", aggregation="token_mean")
    draws = np.random.default_rng(1)
    lengths = (2, 3)
    now = {side: [draws.normal(-1, 0.5, n) for n in lengths] for side in ("teacher", "student")}
    old, advantages = [x + draws.normal(0, 0.2, len(x)) for x in now["teacher"]], (0.7, -0.4)
    rows, reference, theta = [], [], []
    for side, share, prompt in (("teacher", 0.25, (1, 2, 3)), ("student", 0.75, (2, 3))):
        for i, n in enumerate(lengths):
            completion = np.arange(n, dtype=np.int32)
            rows.append(Row(prompt, completion, old[i], advantages[i], i, None, weight=2 * share))
            rows[-1] = rows[-1]._replace(borrowed=side == "student")
            reference.append(now["student"][i] if side == "teacher" else old[i])
            theta.append(now[side][i])
    sizes = np.array([len(row.completion) for row in rows])
    weights = AGGREGATIONS["token_mean"](sizes, np.arange(4), 8) * np.array([row.weight for row in rows])
    (batch,), places = make_batches(rows, micro_rows=1, length=32, weights=weights, reference=reference)
    starts = np.cumsum([0, *sizes])
    index = np.zeros(batch.mask.shape, int)
    for i, at in enumerate(places):
        index[at.row, at.scored : at.scored + sizes[i]] = np.arange(starts[i], starts[i + 1])

    def loss(theta: jax.Array) -> jax.Array:
        wide = batch._replace(
            **{
                name: np.float64(getattr(batch, name))
                for name in ("old_logprobs", "reference_logprobs", "advantages", "weights")
            }
        )
        fields = make_fields(objective, wide, Totals(np.float64(10), np.float64(10)), None)
        fields = {name: jnp.asarray(x) for name, x in fields.items()}
        return chunk_loss(objective, jnp.where(batch.mask, theta[index], 0.0), jnp.zeros(index.shape), fields, distill)[
            0
        ]

    def paper(x: np.ndarray) -> tuple[float, float]:
        """(value, what it is without the straight-through): k3+ has the value of k3 and the slope of k2."""
        parts = np.split(x, starts[1:-1])
        total = slope = 0.0
        for i, part in enumerate(parts):
            side, k = (0.25, i) if i < 2 else (0.75, i - 2)
            gap = part - reference[i]
            gain = np.sum(np.exp(part - old[k])) * advantages[k]
            estimate = np.sum(np.exp(gap) - 1 - gap) if i >= 2 else np.sum(np.exp(-gap) - 1 + gap)
            moving = estimate if i >= 2 else np.sum(gap**2 / 2)
            total += side * (-gain + 0.3 * estimate) / 5
            slope += side * (-gain + 0.3 * moving) / 5
        return total, slope

    with jax.enable_x64(True):
        x = np.concatenate(theta)
        value, got = jax.value_and_grad(loss)(jnp.asarray(x))
        np.testing.assert_allclose(value, paper(x)[0], rtol=1e-6)
        steps = 1e-6 * np.eye(len(x))
        want = [(paper(x + step)[1] - paper(x - step)[1]) / 2e-6 for step in steps]
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-8)


def test_hints_stand_in_rows_of_their_own(setting: Any, one_device: Mesh) -> None:
    """No token of a hint is among the student's, and whatever the hint is, the student's numbers keep their bits."""
    policy, params, _, old = setting
    rows = make_rows(CASES["opsd"], old)
    batches, places = make_batches(rows, micro_rows=2, length=T)
    assert all(not np.any(batch.tokens == HINT) for batch in batches)
    assert sum(np.sum(batch.other.tokens == HINT) for batch in batches if batch.other) == 3  # once for each prompt
    for row, shown, at in zip(rows, SHOWN, places, strict=True):
        other = batches[at.batch].other
        assert other is not None
        columns = slice(at.scored, at.scored + len(row.completion))
        whole = [*shown, *row.completion]
        before = other.sources[at.row, columns]
        # Each sampled token is predicted from the one before it, at its own place behind the hinted prompt.
        assert other.tokens[at.row, before].tolist() == whole[len(whole) - len(row.completion) - 1 : -1]
        assert other.positions[at.row, before[0]] == len(shown) - 1
    learner = Learner(
        policy,
        OBJECTIVE,
        OptimizerConfig(),
        UpdateConfig(row_tokens=T, micro_tokens=2 * T),
        steps=1,
        max_length=T,
        max_columns=8,
        temperature=TEMPERATURE,
        mesh=one_device,
    )
    scores = learner.score(params, rows)
    changed = [row._replace(other_prompt=(95, 3, 1, *row.prompt)) for row in rows]
    for a, b in zip(scores, learner.score(params, changed), strict=True):
        np.testing.assert_array_equal(a, b)
    # And the other side's rows are what a sequence behind the hinted prompt is.
    wanted = jax.jit(lambda p: of(log_p(policy, p, PLAIN)))(params)
    for a, b in zip(scores, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_update_never_holds_both_logits_of_all_tokens() -> None:
    """Of the Jensen-Shannon form, with the teacher run in the same program."""
    vocab, columns, chunk = 5003, 24, 12
    config = PolicyConfig(
        vocab_size=vocab, dim=8, layers=1, query_heads=2, kv_heads=1, head_size=4, hidden=12, tied_head=False
    )
    policy, distill = Policy(config), CASES["opsd_reward"]
    params = policy.abstract_params()
    row = Row((1, 2), np.ones(columns, np.int32), np.zeros(columns, np.float32), 1.0, 0, other_prompt=(1, 2, 3))
    (batch,), _ = make_batches([row] * 4, micro_rows=1, length=128)
    totals = Totals(np.float32(1), np.float32(1))
    teaching = Teaching(distill, policy, lambda own, frozen, given: own)

    def loss(params: Any) -> Any:
        assert batch.other is not None
        other = teaching.run(params, batch.other)
        return micro_loss(policy, params, batch, totals, OBJECTIVE, 1.0, chunk, distill=distill, other=other)

    program = jax.jit(jax.grad(loss, has_aux=True)).lower(params).compile().as_text()
    assert vocab * 8 <= largest_buffer(program) / 4 <= vocab * chunk * 1.01
