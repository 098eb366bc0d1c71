"""The program against the ordinary loop at equal keys, and lanes together against each alone."""

import jax
import numpy as np
import pytest

from rlvr import policy_folder, trainer
from rlvr.mesh import make_mesh
from rlvr.program.batch import Batch
from rlvr.program.rows import row_members
from tests import tiny
from tests.program.runs import STEPS, lane_of, make_config, run

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes

# What the program does not have: times, what the host's verifiers tell beside the verdict, and the slots of the engine.
ABSENT = {
    "accuracy/gap", "accuracy/lenient", "rollout/cache_gb", "rollout/occupancy", "rollout/tokens_per_s",
    "verify/masked", "verify/seconds_max", "verdict/error", "verdict/refused", "verdict/timeout", "phase", "step",
    "wall_s",
}  # fmt: skip

OBJECTIVES = {
    "two minibatches, k3, entropy": {
        "update.minibatches": 2,
        "objective.kl": "k3",
        "objective.kl_coef": 0.05,
        "objective.entropy_coef": 0.01,
    },
    "stale, recomputed, sequences, moments": {
        "rollout.staleness": 1,
        "objective.old": "recomputed",
        "objective.correction.rule": "tis",
        "objective.ratio": "seq_geo",
        "objective.kl": "k1_to_go",
        "objective.kl_coef": 0.01,
        "objective.whiten": "tokens",
        "objective.selection.second_moment": 0.001,
        "reward.length.overlong_buffer": 2,
    },
}


def params_of(folder, config):
    with jax.set_mesh(make_mesh(config.mesh)) as mesh:
        return jax.tree.map(np.asarray, policy_folder.load_policy(folder, mesh).params)


FIRST, *OTHERS = OBJECTIVES


@pytest.mark.parametrize("name", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_the_program_is_the_ordinary_loop(tmp_path, name):
    config = make_config(OBJECTIVES[name], seed=3)
    with tiny.runs_in_process():
        result = trainer.train(config, tmp_path)
    written = tiny.read_metrics(tmp_path)
    batch, lanes, warm, found = run([config])
    for phase, rows in (("warm_start", warm[0]), ("rl", found[0])):
        expected = [row for row in written if row["phase"] == phase]
        assert len(rows) == len(expected)
        for step, (row, wanted) in enumerate(zip(rows, expected, strict=True)):
            wanted = {
                n: x
                for n, x in wanted.items()
                if not n.startswith(("time/", "memory/", "eval/", "part/")) and n not in ABSENT
            }
            assert row.keys() == wanted.keys(), (step, row.keys() ^ wanted.keys())
            for metric, value in wanted.items():
                close = pytest.approx(value, rel=2e-3, abs=2e-5)
                assert row[metric] == close, (phase, step, metric)
    (evaluated,) = batch.evaluate(lanes)
    for field in ("n", "accuracy", "interval", "mean_tokens", "truncated", "statuses"):
        assert evaluated["sums"][field] == result["eval"]["sums"][field]
    jax.tree.map(
        lambda ours, wanted: np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4),
        lane_of(lanes, 0).state.params,
        params_of(tmp_path, config),
    )


def test_lanes_together_are_the_same_lanes_alone():
    changes = [{}, {"optimizer.learning_rate": 1e-2, "objective.clip_high": 0.05}, {"rollout.temperature": 1.5}]
    configs = [make_config(own, seed=seed) for own in changes for seed in (0, 5)]
    batch = Batch(configs)
    params, _ = batch.warm_start([config.seed for config in configs])
    together, rows, _ = batch.run(batch.begin(params), 0, STEPS)
    alone, own_rows, _ = (one := Batch([configs[3]])).run(one.begin(jax.tree.map(lambda x: x[3:4], params)), 0, STEPS)
    for a, b in zip(own_rows[0], rows[3], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        lane_of(together, 3).state,
        lane_of(alone, 0).state,
    )
    assert len({tuple(sorted(own[-1].items())) for own in rows}) == len(configs)
    with pytest.raises(ValueError, match="the same structure"):
        Batch([configs[0], make_config({"rollout.group_size": 2})])


def test_a_row_holds_what_one_block_of_attention_holds():
    assert row_members(6, 5, 8) == 8
    assert row_members(6, 24, 8) == 4  # 6 + 8 * 23 tokens are more than a block
    assert row_members(100, 64, 8) == 1
