"""One of two processes that verify a sharded batch in jit. test_callback.py starts it; prints a JSON line."""

import json
import sys

import jax
import numpy as np

from rlvr import types
from rlvr.rollout.collect import share_verdicts
from rlvr.verifiers import callback
from rlvr.verifiers.pool import VerifierConfig, VerifierPool

ROWS = 8
VERDICTS = [
    types.Verdict(0.1 + 0.2, "wrong", "é\ud800", 1 / 3, {"strict": 0.1 + 0.2, "lenient": 1.0, "gold": 0.0}),
    types.Verdict(None, "error", "x" * 400, 0.5, {"strict": None, "lenient": None, "judge": None}),
    types.Verdict(1.0, "correct", "", 0.25, {"strict": 1.0, "lenient": 1.0, "audit/exit": 1.0}),
]


def main():
    process, address = int(sys.argv[1]), sys.argv[2]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))

    def distribute(array):
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    tasks = [types.Task(row, "echo", "", str(row % 3), "numeric") for row in range(ROWS)]
    calls = []
    with VerifierPool(VerifierConfig(workers=1, timeout_s=20.0), ["numeric"]) as pool:
        score = callback.make_score_fn(pool, tasks, lambda ids: "".join(map(chr, ids)))

        def record(completions, lengths, indices):
            calls.append(np.asarray(indices).tolist())
            return score(completions, lengths, indices)

        @jax.jit
        def step(completions, lengths, indices):
            scores, statuses = callback.verify_in_jit(record, completions, lengths, indices, mesh=mesh, axes="data")
            return scores, statuses, scores.mean()

        completions = np.full((ROWS, 3), ord("1"), np.int32)
        arrays = (completions, np.ones(ROWS, np.int32), np.arange(ROWS, dtype=np.int32))
        scores, statuses, mean = jax.block_until_ready(step(*map(distribute, arrays)))
        local = sorted((shard.index[0].start, shard.data.tolist()) for shard in scores.addressable_shards)
        report = {
            "calls": sorted(calls),
            "scores": local,
            "mean": float(mean),
            "shared": share_verdicts({i: v for i, v in enumerate(VERDICTS) if i % 2 == process}, 3) == VERDICTS,
            "same_sharding": statuses.sharding.is_equivalent_to(sharding, 1),
        }
    print(json.dumps(report))


main()
