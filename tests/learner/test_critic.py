"""The critic: which positions its values are of, its loss against differences, and what it must leave alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.value import ValueConfig
from rlvr.learner.batch import Row, make_batches
from rlvr.learner.critic import CriticConfig, value_loss
from rlvr.learner.learner import Learner
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import AXES
from rlvr.policy.transformer import Policy

Tiny = Callable[[str], tuple[Policy, Any]]
Rows = Callable[..., list[Row]]
T = 16
GAE = ObjectiveConfig(advantage="gae", aggregation="token_mean", value=ValueConfig(coef=0.7, clip=0.2))


BOOTSTRAP = dataclasses.replace(GAE, value=dataclasses.replace(GAE.value, bootstrap=True))
NO_CRITIC = ObjectiveConfig(advantage="reward", aggregation="token_mean")


def make_learner(
    policy: Policy, optimizer: OptimizerConfig, mesh: Mesh, objective: ObjectiveConfig = GAE, **update: int
) -> Learner:
    return Learner(
        policy,
        objective,
        optimizer,
        UpdateConfig(**{"row_tokens": 32, "micro_tokens": 64, "logprob_chunk": 8, **update}),
        steps=10,
        max_length=T,
        max_columns=8,
        temperature=1.0,
        mesh=mesh,
        critic=CriticConfig(optimizer=optimizer) if objective.needs_values() else None,
    )


@pytest.fixture(scope="module")
def learner(tiny_policy: Tiny, descent: OptimizerConfig) -> Learner:
    mesh = jax.make_mesh((1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:1])
    return make_learner(tiny_policy("shallow")[0], descent, mesh)


def random_critic(dim: int) -> Any:
    rng = np.random.default_rng(3)
    return {"kernel": jnp.asarray(rng.normal(size=dim) / 8, jnp.float32), "bias": jnp.float32(0.25)}


def begin(learner: Learner, params: Any, critic: Any) -> Any:
    """A state with copies of given parameters: an update consumes the state it is given."""
    state = learner.fresh(jax.tree.map(jnp.copy, params))
    return state._replace(critic=state.critic._replace(params=jax.tree.map(jnp.copy, critic)))


def own_values(policy: Policy, params: Any, critic: Any, rows: Sequence[Row], after: bool = False) -> list[Any]:
    """The values of each row from a full forward pass of a row of its own: [C], or [C + 1] with the one at its end."""
    tokens = np.zeros((len(rows), T + 1), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row.prompt) + len(row.completion)] = [*row.prompt, *row.completion]
    positions = np.broadcast_to(np.arange(T + 1, dtype=np.int32), tokens.shape)
    run = jax.jit(lambda p: policy.forward(p, tokens, positions).hidden)
    values = run(params) @ critic["kernel"] + critic["bias"]
    ends = [len(row.prompt) - 1 + len(row.completion) + after for row in rows]
    return [values[i, len(row.prompt) - 1 : ends[i]] for i, row in enumerate(rows)]


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("shared", [False, True], ids=["packed", "shared_prompts"])
def test_values_are_those_of_the_states_before_the_tokens(
    tiny_policy: Tiny, make_rows: Rows, learner: Learner, shared: bool
) -> None:
    policy, params = tiny_policy("shallow")
    critic = random_critic(policy.config.dim)
    rows = make_rows(7, shared=shared)
    want = own_values(policy, params, critic, rows)
    assert float(np.std(np.concatenate(want))) > 0.1
    for got, expected in zip(learner.values(begin(learner, params, critic), rows), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("one_device")
def test_a_row_that_was_cut_off_has_one_more_where_it_is_asked_for(
    tiny_policy: Tiny, make_rows: Rows, descent: OptimizerConfig, one_device: Mesh
) -> None:
    policy, params = tiny_policy("shallow")
    critic = random_critic(policy.config.dim)
    rows = [row._replace(truncated=i % 3 == 0) for i, row in enumerate(make_rows(7, shared=True))]
    bootstrapping = make_learner(policy, descent, one_device, BOOTSTRAP)
    want, ends = (own_values(policy, params, critic, rows, after) for after in (False, True))
    got = bootstrapping.values(begin(bootstrapping, params, critic), rows)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(got[i], ends[i] if row.truncated else want[i], rtol=1e-4, atol=1e-5)
    plain = make_learner(policy, descent, one_device, NO_CRITIC)
    assert plain.values(plain.fresh(jax.tree.map(jnp.copy, params)), rows) is None


def with_targets(rows: Sequence[Row], values: Sequence[Any]) -> list[Row]:
    """Rows with old values and returns on both sides of the clip, two of them without weight."""
    rng = np.random.default_rng(4)
    out = []
    for i, (row, v) in enumerate(zip(rows, values, strict=True)):
        before, returns = (np.asarray(v + rng.normal(0, scale, len(v)), np.float32) for scale in (0.3, 2.0))
        out.append(row._replace(values=before, returns=returns, value_weight=float(i not in (1, 4))))
    return out


def gradient_of(before: Any, after: Any, epsilon: float) -> Any:
    """Undoes the descent of `conftest.DESCENT`: step = -epsilon * g / (|g| + epsilon)."""

    def undo(old: Any, new: Any) -> Any:
        step = np.asarray(old, np.float64) - np.asarray(new, np.float64)
        return step / (1 - np.abs(step) / epsilon)

    return jax.tree.map(undo, before, after)


@pytest.mark.usefixtures("one_device")
def test_the_gradient_is_that_of_the_policy_and_the_value_loss(
    tiny_policy: Tiny, make_rows: Rows, descent: OptimizerConfig, learner: Learner, one_device: Mesh
) -> None:
    policy, params = tiny_policy("shallow")
    critic = random_critic(policy.config.dim)
    rows = with_targets(make_rows(6, shared=True), own_values(policy, params, critic, make_rows(6, shared=True)))
    count = sum(len(row.completion) for row in rows)

    def naive(params: Any, critic: Any) -> Any:
        loss = jnp.float32(0)
        for row, v in zip(rows, own_values(policy, params, critic, rows), strict=True):
            near = jnp.clip(v, row.values - 0.2, row.values + 0.2)
            loss += row.value_weight * jnp.sum(jnp.maximum((v - row.returns) ** 2, (near - row.returns) ** 2))
        return 0.5 * loss / count

    plain = make_learner(policy, descent, one_device, NO_CRITIC)
    state, read = learner.update(begin(learner, params, critic), rows)
    alone, _ = plain.update(plain.fresh(jax.tree.map(jnp.copy, params)), [row._replace(values=None) for row in rows])
    by_params, by_critic = jax.jit(jax.grad(lambda p, c: 0.7 * naive(p, c), argnums=(0, 1)))(params, critic)
    both, policys = (gradient_of(params, s.params, descent.epsilon) for s in (state, alone))
    assert max(float(np.max(np.abs(x))) for x in jax.tree.leaves(by_params)) > 0.02
    close = {"rtol": 1e-3, "atol": 3e-5}
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a - b, c, **close), both, policys, by_params)
    head = gradient_of(critic, state.critic.params, descent.epsilon)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, **close), head, by_critic)
    metrics = read()
    np.testing.assert_allclose(metrics["loss/value"], naive(params, critic), rtol=1e-4)
    assert 0 < metrics["clip/value"] < 1 and metrics["optimizer/critic_grad_norm"] > 0


@pytest.mark.usefixtures("one_device")
def test_a_step_of_the_critic_alone_leaves_the_policy(tiny_policy: Tiny, make_rows: Rows, learner: Learner) -> None:
    policy, params = tiny_policy("shallow")
    critic = random_critic(policy.config.dim)
    rows = with_targets(make_rows(6), own_values(policy, params, critic, make_rows(6)))
    before = jax.device_get(begin(learner, params, critic))
    both, _ = learner.update(begin(learner, params, critic), rows)
    alone, read = learner.update(begin(learner, params, critic), rows, critic_only=True)
    for kept, was in ((alone.params, before.params), (alone.opt_state, before.opt_state)):
        jax.tree.map(np.testing.assert_array_equal, kept, was)
    jax.tree.map(np.testing.assert_array_equal, alone.critic, both.critic)
    assert float(np.max(np.abs(alone.critic.params["kernel"] - critic["kernel"]))) > 1e-3
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (both.params, before.params)), strict=True))
    assert read()["optimizer/skipped"] == 0
    # What is not finite is not learned by either.
    bad = [rows[0]._replace(returns=np.full(len(rows[0].returns), np.nan, np.float32)), *rows[1:]]
    state, read = learner.update(alone, bad, critic_only=True)
    assert read()["optimizer/skipped"] == 1 and np.isfinite(state.critic.params["bias"])


def test_its_programs_are_lowered_without_running(
    tiny_policy: Tiny, make_rows: Rows, descent: OptimizerConfig, one_device: Mesh
) -> None:
    objective = dataclasses.replace(GAE, imitation_coef=0.1)
    learner = make_learner(tiny_policy("shallow")[0], descent, one_device, objective)
    state = learner.abstract()
    assert state.critic.params["kernel"].shape == (48,)
    with jax.set_mesh(one_device):
        lowered = learner.lower(32, state, make_rows(2)[0])
    assert lowered.keys() == {"accumulate", "apply"}


@pytest.mark.usefixtures("one_device")
def test_epochs_go_over_the_same_minibatches_again(
    tiny_policy: Tiny, make_rows: Rows, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, params = tiny_policy("shallow")
    critic = random_critic(policy.config.dim)
    rows = with_targets(make_rows(8), own_values(policy, params, critic, make_rows(8)))
    rows = [*rows[0::2], *rows[1::2]]
    once, twice = UpdateConfig(minibatches=2), UpdateConfig(minibatches=2, epochs=2)
    monkeypatch.setattr(learner, "_config", once)
    state = begin(learner, params, critic)
    for _ in range(2):  # the rows keep their log-probs, advantages, values and returns
        state, _ = learner.update(state, rows)
    monkeypatch.setattr(learner, "_config", twice)
    again, read = learner.update(begin(learner, params, critic), rows)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert read()["gap/max"] > 0 and (once.optimizer_steps, twice.optimizer_steps) == (2, 4)


@pytest.mark.usefixtures("one_device")
def test_alone_it_learns_the_returns(tiny_policy: Tiny, make_rows: Rows, one_device: Mesh) -> None:
    policy, params = tiny_policy("shallow")
    adam = OptimizerConfig(learning_rate=0.05)
    learner = make_learner(policy, adam, one_device, dataclasses.replace(GAE, value=ValueConfig(clip=0.0)))
    rows = with_targets(make_rows(6), own_values(policy, params, random_critic(policy.config.dim), make_rows(6)))
    state, losses = learner.fresh(jax.tree.map(jnp.copy, params)), []
    for _ in range(60):
        state, read = learner.update(state, rows, critic_only=True)
        losses.append(read()["loss/value"])
    assert losses[-1] < 0.1 * losses[0]


# The loss by its values, in the manner of test_presets: values of tokens are the parameters.
LENGTHS, GROUPS = (2, 5, 1, 4, 3, 6), (0, 0, 0, 1, 1, 1)
N = sum(LENGTHS)
LAYOUTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "micro_batches": {"micro_rows": 1, "length": 12},
    "padding": {"micro_rows": 1, "length": 40},
    "order": {"order": (4, 0, 3, 5, 2, 1), "micro_rows": 1, "length": 12},
    "unshared": {"prompts": {0: (1,), 1: (1, 4, 5)}, "micro_rows": 1, "length": 12},
}


def by_values(
    now: np.ndarray,
    clip: float,
    *,
    prompts: dict[int, tuple[int, ...]] | None = None,
    micro_rows: int = 2,
    length: int = 24,
    order: Sequence[int] = range(6),
) -> tuple[float, np.ndarray]:
    """Returns (value loss, gradient by each token's value) in float64; whatever is not a sampled token is poisoned."""
    objective = dataclasses.replace(GAE, value=ValueConfig(clip=clip, coef=0.3))
    prompts = prompts or {0: (1, 2, 3), 1: (4, 5)}
    starts = np.cumsum([0, *LENGTHS])
    rows = [
        Row(prompts[GROUPS[i]], np.arange(LENGTHS[i], dtype=np.int32) + 7 * i, np.zeros(LENGTHS[i]), 0.0, GROUPS[i])
        for i in order
    ]
    spans = [slice(starts[i], starts[i + 1]) for i in order]
    rows = [
        row._replace(values=BEFORE[span], returns=RETURNS[span], value_weight=float(i != 3))
        for i, row, span in zip(order, rows, spans, strict=True)
    ]
    batches, places = make_batches(rows, micro_rows=micro_rows, length=length)
    total, gradient = 0.0, np.zeros(N)
    with jax.enable_x64(True):
        for number, batch in enumerate(batches):
            index = np.full(batch.mask.shape, N, np.int64)
            for span, at, row in zip(spans, places, rows, strict=True):
                if at.batch == number:
                    index[at.row, at.scored : at.scored + len(row.completion)] = np.arange(N)[span]
            fields = ("values", "returns", "value_weight")
            micro = batch._replace(**{f: np.where(batch.mask, np.float64(getattr(batch, f)), np.nan) for f in fields})

            def loss(theta: jax.Array, index: Any = index, micro: Any = micro) -> Any:
                values = jnp.append(theta, jnp.nan)[index]
                return value_loss(objective, values, micro, jnp.float64(N))[0]

            own, slope = jax.value_and_grad(loss)(jnp.asarray(now))
            total, gradient = total + float(own), gradient + np.asarray(slope)
    return total, gradient


RNG = np.random.default_rng(9)
BEFORE, RETURNS = (RNG.normal(size=N).astype(np.float32).astype(np.float64) for _ in range(2))
VALUES = BEFORE + RNG.normal(0, 0.3, N).astype(np.float32)
KEPT = np.repeat(np.arange(6) != 3, LENGTHS)


def naive_value_loss(now: np.ndarray, clip: float) -> float:
    near = np.clip(now, BEFORE - clip, BEFORE + clip) if clip else now
    return 0.3 * float(np.sum(KEPT * 0.5 * np.maximum((now - RETURNS) ** 2, (near - RETURNS) ** 2))) / N


@pytest.mark.parametrize("clip", [0.2, 0.0])
def test_the_value_loss_has_the_gradient_of_its_formula_however_it_is_laid_out(clip: float) -> None:
    want = np.zeros(N)
    for t in range(N):
        ends = []
        for step in (1e-6, -1e-6):
            moved = VALUES.copy()
            moved[t] += step
            ends.append(naive_value_loss(moved, clip))
        want[t] = (ends[0] - ends[1]) / 2e-6
    assert np.count_nonzero(np.abs(want) > 1e-9) >= N // 3
    assert not clip or np.any((np.abs(want) < 1e-9) & KEPT)  # some are clipped
    for layout in LAYOUTS.values():
        value, got = by_values(VALUES, clip, **layout)
        np.testing.assert_allclose(value, naive_value_loss(VALUES, clip), rtol=1e-12)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)
