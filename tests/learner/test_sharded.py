"""On 8 devices, however the mesh splits them: the same metrics, gradients, log-probs and greedy tokens as on one."""

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from rlvr import errors, partition
from rlvr.algo.correction import CorrectionConfig
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.selection import SelectionConfig
from rlvr.learner.batch import Row
from rlvr.learner.critic import CriticConfig
from rlvr.learner.learner import Learner
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import AXES, MeshConfig, make_mesh
from rlvr.policy.config import PolicyConfig
from rlvr.policy.parameters import fan_in
from rlvr.policy.transformer import Policy
from rlvr.rollout.config import EngineConfig
from rlvr.rollout.engine import Engine
from rlvr.types import Request

# A dense layer and a mixture with every switch that adds a parameter; every size divides over the meshes below.
POLICY = Policy(
    PolicyConfig(
        vocab_size=98,
        dim=48,
        layers=2,
        query_heads=4,
        kv_heads=2,
        head_size=10,
        hidden=56,
        moe_layers=(1,),
        experts=8,
        expert_hidden=40,
        expert_bias=True,
        shared_hidden=24,
        router_scores="sigmoid",
        router_bias=True,
        selection_bias=True,
        router_groups=4,
        router_groups_kept=2,
        attention_bias=True,
        out_bias=True,
        qk_norm="width",
        sinks=True,
        sliding_window=5,
        window_layers=(0,),
        norm_place="both",
    )
)
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp_expert_tensor": MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
    "expert_tensor": MeshConfig(data=1, expert=4, tensor=2),
}
# With sums over sequences and over all tokens, which stand on other shards, and a critic.
OBJECTIVE = ObjectiveConfig(
    advantage="gae",
    ratio="seq_geo",
    old="recomputed",
    correction=CorrectionConfig("tis", level="seq_prod", high=2.0, opsm=0.1),
    selection=SelectionConfig(top_entropy=0.5),
    kl="k2",
    kl_coef=0.05,
    entropy_coef=0.02,
    balance_coef=0.1,
    z_coef=0.01,
    routing="rollout",
    bias_rate=0.01,
)


def replayed(rows: list[Row]) -> list[Row]:
    """The rows with experts drawn for each token, but for every fifth row, which has none."""
    rng = np.random.default_rng(11)
    out = []
    for i, row in enumerate(rows):
        length = len(row.prompt) + len(row.completion)
        choices = np.argsort(rng.random((length, 1, 8)), axis=-1)[..., :2].astype(np.int16)
        out.append(row._replace(choices=np.full_like(choices, -1) if i % 5 == 0 else choices))
    return out


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Within the context the name of each program that XLA compiles is appended to the yielded list."""
    names: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: names.extend(re.findall(r"^Finished XLA compilation of (\S+)", record.getMessage()))
    logger = logging.getLogger("jax._src.dispatch")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)


def one_device_mesh() -> Mesh:
    return jax.make_mesh((1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:1])


def work(mesh: Mesh, initial: Any, rows: list[Row], descent: OptimizerConfig) -> dict[str, Any]:
    """One update of two micro-batches, and some greedy tokens, all as host arrays."""
    with jax.set_mesh(mesh):
        shardings = partition.shardings(mesh, POLICY.logical_axes())
        params = jax.tree.map(jax.device_put, initial, shardings)
        out: dict[str, Any] = {}
        engine = Engine(
            POLICY,
            EngineConfig(slots=8, max_prompt_tokens=6, max_new_tokens=6, prefill_rows=8, decode_steps=6),
            (),
            mesh,
        )
        requests = [Request(i, i, 0, tuple(row.prompt)) for i, row in enumerate(rows[:12])]
        with compilations() as compiled:
            completions = engine.generate(params, requests, jax.random.key(0), temperature=0.0)
        out["tokens"] = np.stack([c.tokens for c in completions])
        out["logprobs"] = np.stack([c.logprobs for c in completions])
        out["compiled"] = compiled
        learner = Learner(
            POLICY,
            OBJECTIVE,
            descent,
            UpdateConfig(row_tokens=16, micro_tokens=128, logprob_chunk=32),
            steps=10,
            max_length=14,
            max_columns=8,
            temperature=0.8,
            mesh=mesh,
            critic=CriticConfig(optimizer=descent),
        )
        state = learner.fresh(params)
        drawn = {"kernel": np.random.default_rng(2).normal(size=48).astype(np.float32) / 7, "bias": np.float32(0.3)}
        homes = learner.abstract().critic.params
        drawn = jax.tree.map(lambda x, home: jax.device_put(x, home.sharding), drawn, homes)
        state = state._replace(critic=state.critic._replace(params=drawn))
        before = learner.values(state, rows)
        out["values"] = np.concatenate(before)
        rows = [
            row._replace(values=v, returns=v - np.float32(row.advantage), value_weight=1.0)
            for row, v in zip(rows, before, strict=True)
        ]
        expected = jax.tree.map(lambda s: s.sharding, learner.abstract())
        shapes = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, expected)
        out["placed"] = all(jax.tree.leaves(shapes))
        reference = [np.asarray(row.old_logprobs) - 0.1 for row in rows]
        state, read = learner.update(state, rows, reference)
        out["metrics"] = read()
        out["kept"] = all(
            jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state.params, shardings))
        )
        out["step"] = jax.tree.map(np.subtract, jax.device_get(state.params), initial)
        out["critic"] = jax.device_get(state.critic.params)
        return out


@pytest.fixture(scope="module")
def results(
    make_rows: Callable[..., list[Row]], descent: OptimizerConfig, params_of: Callable[[Policy], Any]
) -> Callable[[str], dict[str, Any]]:
    rows = replayed(make_rows(16, vocab=98))
    initial = jax.device_get(params_of(POLICY))

    @functools.cache
    def run(name: str) -> dict[str, Any]:
        mesh = one_device_mesh() if name == "one" else make_mesh(MESHES[name])
        return work(mesh, initial, rows, descent)

    return run


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_changes_nothing_but_rounding(results: Callable[[str], dict[str, Any]], mesh: str) -> None:
    one, many = results("one"), results(mesh)
    np.testing.assert_array_equal(one["tokens"], many["tokens"])
    np.testing.assert_allclose(one["logprobs"], many["logprobs"], atol=2e-5)
    assert len({tuple(row) for row in one["tokens"].tolist()}) > 6
    assert one["metrics"].keys() == many["metrics"].keys()
    for name, value in one["metrics"].items():
        np.testing.assert_allclose(many["metrics"][name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    # Sums over shards come in another order: 1e-4 of the largest gradient of each parameter, against O(1) for a
    # gradient counted twice or divided by a number of shards.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * float(np.max(np.abs(a)))),
        one["step"],
        many["step"],
    )
    np.testing.assert_allclose(many["values"], one["values"], atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4), one["critic"], many["critic"])
    assert many["placed"] and many["kept"]
    # 12 requests in 8 slots: each step runs on slots that came from each other step, and is compiled once.
    assert [many["compiled"].count(f"jit({step})") for step in ("decode", "admit")] == [1, 1]


def test_random_parameters_are_the_same_bits_on_any_mesh() -> None:
    draw = functools.partial(fan_in(0), shape=(48, 4, 10), dtype=np.float32)
    mesh = make_mesh(MESHES["fsdp_expert_tensor"])
    split = jax.jit(draw, out_shardings=partition.shardings(mesh, ("embed", "query_heads", None)))(jax.random.key(3))
    assert split.addressable_shards[0].data.shape == (24, 2, 10)
    np.testing.assert_array_equal(split, jax.jit(draw)(jax.random.key(3)))


def test_slots_that_do_not_divide_over_the_mesh_are_refused() -> None:
    mesh = make_mesh(MESHES["data"])
    for field in ("slots", "prefill_rows"):
        with pytest.raises(errors.ConfigError, match=rf"engine.{field}=4 .*multiple of 8"):
            Engine(POLICY, EngineConfig(**({"slots": 8, "prefill_rows": 8} | {field: 4})), (), mesh)
