"""Router replay: what is recorded, what replaying it does, and that the learner uses and measures it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from rlvr import errors
from rlvr.algo.objectives import ROUTINGS, ObjectiveConfig
from rlvr.checks import validate
from rlvr.config import ExperimentConfig
from rlvr.learner.batch import Row
from rlvr.learner.learner import Learner
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.update import UpdateConfig
from rlvr.policy.config import PolicyConfig
from rlvr.policy.lora import LoraConfig
from rlvr.policy.router import balance_step
from rlvr.policy.transformer import Policy
from tests import tiny

Tiny = Callable[[str], tuple[Policy, Any]]
E, TOP, LAYERS = 8, 2, 2
RNG = np.random.default_rng(3)
TOKENS = RNG.integers(0, 97, size=(3, 9)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(9, dtype=np.int32), TOKENS.shape)
VALID = POSITIONS < np.array([9, 6, 4])[:, None]


def random_choices(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.argsort(rng.random((*shape, E)), axis=-1)[..., :TOP].astype(np.int32)


@pytest.fixture(scope="module")
def run(tiny_policy: Tiny) -> Callable[..., tuple[jax.Array, Any, Any]]:
    """(replay or None) -> (hidden, choices, gradient of a scalar of the valid hidden states)."""
    policy, params = tiny_policy("moe")

    def scalar(params: Any, tokens: jax.Array, replay: Any) -> tuple[jax.Array, Any]:
        output = policy.forward(params, tokens, POSITIONS, counts=VALID, replay=replay)
        return jnp.sum(jnp.where(VALID[..., None], output.hidden, 0.0) ** 3), (output.hidden, output.choices)

    compiled = jax.jit(jax.grad(scalar, has_aux=True))

    def call(replay: Any = None, tokens: np.ndarray = TOKENS) -> tuple[jax.Array, Any, Any]:
        gradient, (hidden, choices) = compiled(params, tokens, replay)
        return hidden, choices, gradient

    return call


def test_replaying_the_live_choices_is_live_to_the_bit_and_none_recorded_too(run: Any) -> None:
    hidden, choices, gradient = run()
    assert choices.shape == (3, 9, LAYERS, TOP)
    for replay in (choices, np.full(choices.shape, -1)):
        again = run(replay)
        jax.tree.map(np.testing.assert_array_equal, (hidden, choices, gradient), again)


def test_other_choices_change_the_output_and_the_router_still_learns(run: Any) -> None:
    hidden, _, gradient = run()
    other, live, changed = run(random_choices(RNG, 3, 9, LAYERS))
    assert np.max(np.abs(other - hidden)) > 0.1
    for layer in range(LAYERS):
        before, after = (g[f"layer_{layer}"]["moe"]["router"] for g in (gradient, changed))
        assert np.max(np.abs(after)) > 1e-3 and np.max(np.abs(after - before)) > 1e-3
    # The first layer sees the same input either way: what the router would choose is what it chose.
    np.testing.assert_array_equal(live[:, :, 0], run()[1][:, :, 0])


def test_replayed_padding_changes_nothing_before_it(run: Any) -> None:
    replay = random_choices(RNG, 3, 9, LAYERS)
    hidden, _, gradient = run(replay)
    tokens, other = TOKENS.copy(), replay.copy()
    tokens[~VALID], other[~VALID] = 5, random_choices(RNG, int(np.sum(~VALID)), LAYERS)
    again, _, same = run(other, tokens)
    np.testing.assert_array_equal(again[VALID], hidden[VALID])
    # Rows of a product over all tokens are added in blocks of another division.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.max(np.abs(a))), gradient, same)


def test_changed_choices_are_summed_over_layers(run: Any) -> None:
    from rlvr.policy.router import count_changed

    live = run()[1]
    recorded = np.asarray(live).copy()[..., ::-1]
    assert count_changed(live, recorded, VALID) == 0  # the order means nothing
    recorded[0, 2, 0] = (np.asarray(live)[0, 2, 0] + 1) % E
    recorded[1, 8, 1] = (np.asarray(live)[1, 8, 1] + 1) % E  # padding
    assert count_changed(live, recorded, VALID) == 1


def make_learner(policy: Policy, descent: OptimizerConfig, mesh: Mesh, **options: Any) -> Learner:
    minibatches = options.pop("minibatches", 1)
    return Learner(
        policy,
        ObjectiveConfig(**options),
        descent,
        UpdateConfig(row_tokens=16, micro_tokens=64, logprob_chunk=8, minibatches=minibatches),
        steps=10,
        max_length=14,
        max_columns=8,
        temperature=1.0,
        mesh=mesh,
    )


def with_choices(rows: list[Row], choose: Callable[[int], np.ndarray]) -> list[Row]:
    return [row._replace(choices=choose(len(row.prompt) + len(row.completion))) for row in rows]


@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_learner_replays_and_counts(
    tiny_policy: Tiny, descent: OptimizerConfig, one_device: Mesh, make_rows: Any, copied: Any, routing: str
) -> None:
    policy, params = tiny_policy("moe")
    learner = make_learner(policy, descent, one_device, routing=routing, minibatches=2)
    rng = np.random.default_rng(0)
    foreign = with_choices(make_rows(8), lambda n: random_choices(rng, n, LAYERS).astype(np.int16))
    absent = with_choices(foreign, lambda n: np.full((n, LAYERS, TOP), -1, np.int16))
    steps = {}
    for name, rows in (("foreign", foreign), ("absent", absent)):
        state, read = learner.update(learner.fresh(copied(params)), rows)
        metrics = read()
        steps[name] = jax.tree.map(np.asarray, state.params)
        assert (
            metrics["moe/choices_changed"] == pytest.approx(0.96, abs=0.04)
            if name == "foreign"
            else metrics["moe/choices_changed"] == 0.0
        )
    differences = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), steps["foreign"], steps["absent"])
    changed = max(jax.tree.leaves(differences)) > 1e-3
    assert changed == (routing == "rollout")  # the others do not look at what the rollout recorded


def test_old_routing_keeps_the_choices_of_before_the_first_minibatch(
    tiny_policy: Tiny, one_device: Mesh, make_rows: Any, copied: Any
) -> None:
    policy, params = tiny_policy("moe")
    strong = OptimizerConfig(learning_rate=0.3, b1=0.0, b2=0.0)  # the first of two updates turns routing over
    rows = with_choices(make_rows(8), lambda n: np.full((n, LAYERS, TOP), -1, np.int16))
    results = {}
    for routing in ("live", "old"):
        learner = make_learner(policy, strong, one_device, routing=routing, minibatches=2)
        results[routing] = learner.update(learner.fresh(copied(params)), rows)[0].params
        one = make_learner(policy, strong, one_device, routing=routing)
        results[routing, 1] = one.update(one.fresh(copied(params)), rows)[0].params

    def distance(a: str | tuple[str, int], b: str | tuple[str, int]) -> float:
        return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), results[a], results[b])))

    assert distance(("live", 1), ("old", 1)) < 1e-5  # one update: nothing has changed yet
    assert distance("live", "old") > 1e-2


def test_balance_step_by_hand_and_only_where_asked() -> None:
    config = PolicyConfig(layers=3, moe_layers=(0, 2), experts=4, experts_per_token=1, selection_bias=True)
    params = {f"layer_{i}": {"moe": {"selection_bias": jnp.zeros(4), "router": jnp.ones(2)}} for i in (0, 2)}
    load = jnp.array([[4.0, 0.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    moved = balance_step(params, config, load, jnp.float32(0.5))
    np.testing.assert_array_equal(moved["layer_0"]["moe"]["selection_bias"], [-0.5, 0.5, 0.0, 0.0])
    np.testing.assert_array_equal(moved["layer_2"]["moe"]["selection_bias"], 0.0)
    np.testing.assert_array_equal(params["layer_0"]["moe"]["selection_bias"], 0.0)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_an_update_moves_the_bias_by_its_rate_and_a_skipped_one_does_not(
    descent: OptimizerConfig, one_device: Mesh, make_rows: Any, params_of: Any, copied: Any, rate: float
) -> None:
    policy = Policy(
        PolicyConfig(
            vocab_size=97,
            dim=48,
            layers=1,
            moe_layers=(0,),
            expert_hidden=40,
            selection_bias=True,
            router_scores="sigmoid",
        )
    )
    params = params_of(policy)
    learner = make_learner(policy, descent, one_device, bias_rate=rate)
    before = np.asarray(params["layer_0"]["moe"]["selection_bias"])
    state, _ = learner.update(learner.fresh(copied(params)), make_rows(8))
    moves = np.asarray(state.params["layer_0"]["moe"]["selection_bias"]) - before
    assert set(np.round(np.abs(moves), 5).tolist()) <= {0.0, rate} and np.any(moves) == bool(rate)
    broken = [row._replace(advantage=float("nan")) for row in make_rows(8)]
    state, read = learner.update(learner.fresh(copied(params)), broken)
    metrics = read()
    assert metrics["optimizer/skipped"] == 1
    np.testing.assert_array_equal(state.params["layer_0"]["moe"]["selection_bias"], before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"routing": "rollout"}, "only 'live' fits a dense policy"),
        ({"routing": "replay"}, "accepted: live, rollout, old"),
        ({"bias_rate": 0.1}, "policy.selection_bias is false"),
    ],
)
def test_routing_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    config: ExperimentConfig = tiny.make_config(moe=False)
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, **changes))
    with pytest.raises(errors.ConfigError, match=message):
        validate(config)


def test_a_bias_that_adapters_would_leave_behind_is_refused() -> None:
    config = tiny.make_config()
    policy = dataclasses.replace(config.policy, selection_bias=True)
    objective = dataclasses.replace(config.objective, bias_rate=0.1)
    config = dataclasses.replace(config, policy=policy, objective=objective, lora=LoraConfig(rank=2))
    with pytest.raises(errors.ConfigError, match=r"lora.rank=2 trains adapters only"):
        validate(config)
