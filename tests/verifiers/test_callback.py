"""Verdicts inside jit: every row once, in the call of its own shard, equal to what the pool says directly."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import errors, types
from rlvr.verifiers import callback
from rlvr.verifiers.pool import VerifierConfig, VerifierPool

B, C = 16, 5
TASKS = [types.Task(number, "sum", "", str(number), "numeric") for number in range(7)]
TASKS[6] = types.Task(6, "sum", "", "six", "numeric")  # a reference that no answer can be compared with
ANSWERS = ["0", "1", "3", "3", "four", "5", "", "0", "1", "7", "3", "4", "-5", "6", "2", "1"]


def decode(ids):
    return "".join(map(chr, ids))


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(VerifierConfig(timeout_s=20.0), ["numeric"]) as pool:
        yield pool


@pytest.fixture
def batch():
    completions = np.full((B, C), ord("9"), np.int32)  # padding that would change the answers if it were read
    for row, answer in enumerate(ANSWERS):
        completions[row, : len(answer)] = [ord(letter) for letter in answer]
    lengths = np.array([len(answer) for answer in ANSWERS], np.int32)
    return completions, lengths, np.arange(B, dtype=np.int32) % len(TASKS)


def make_mesh(**sizes):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    auto = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=auto)


@pytest.mark.parametrize(
    ("sizes", "axes", "shards"),
    [
        ({"data": 8}, "data", 8),
        ({"data": 2, "fsdp": 4}, ("data", "fsdp"), 8),
        ({"data": 4, "tensor": 2}, "data", 4),
    ],
)
def test_every_row_once_by_its_own_shard(pool, batch, sizes, axes, shards):
    mesh = make_mesh(**sizes)
    score, calls, lock = callback.make_score_fn(pool, TASKS, decode), [], threading.Lock()

    def record(completions, lengths, rows_and_indices):
        rows_and_indices = np.asarray(rows_and_indices)
        with lock:
            calls.append((rows_and_indices // 100).tolist())
        return score(completions, lengths, rows_and_indices % 100)

    sharding = jax.sharding.NamedSharding(mesh, jax.P(axes))
    completions, lengths, indices = batch
    arrays = jax.device_put((completions, lengths, indices + 100 * np.arange(B, dtype=np.int32)), sharding)

    @jax.jit
    def step(completions, lengths, indices):
        found = callback.verify_in_jit(record, completions, lengths, indices, mesh=mesh, axes=axes)
        return *found, jnp.where(found[1] == types.STATUSES.index("error"), 0.0, found[0]).sum()

    scores, statuses, total = jax.block_until_ready(step(*arrays))
    b = B // shards
    assert sorted(calls) == [list(range(start, start + b)) for start in range(0, B, b)]
    direct = [pool.submit(TASKS[index], answer).result(30) for index, answer in zip(indices, ANSWERS, strict=True)]
    np.testing.assert_array_equal(scores, [np.nan if v.score is None else v.score for v in direct])
    assert [types.STATUSES[code] for code in np.asarray(statuses)] == [verdict.status for verdict in direct]
    assert {verdict.status for verdict in direct} == {"correct", "wrong", "unparsed", "error"}
    assert scores.dtype == jnp.float32 and statuses.dtype == jnp.int32
    assert scores.sharding.is_equivalent_to(sharding, 1) and statuses.sharding.is_equivalent_to(sharding, 1)
    assert total == np.nansum(scores)


def test_bad_batches_are_refused(pool, batch):
    mesh, score = make_mesh(data=8), callback.make_score_fn(pool, TASKS, decode)
    completions, lengths, indices = batch
    with pytest.raises(errors.ConfigError, match="12 rows is not a multiple of the 8 shards"):
        callback.verify_in_jit(score, *(jnp.asarray(array[:12]) for array in batch), mesh=mesh, axes="data")
    with pytest.raises(errors.ConfigError, match="axes='dta'"):
        callback.verify_in_jit(score, *map(jnp.asarray, batch), mesh=mesh, axes="dta")
    with pytest.raises(IndexError, match="task index 7"):
        score(completions, lengths, indices + 1)
    with pytest.raises(IndexError, match="task index -1"):
        score(completions, lengths, indices - 1)
    with pytest.raises(ValueError, match="length 6"):
        score(completions, lengths + C - 3, indices)


def test_two_processes_each_verify_their_own_rows():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script = pathlib.Path(__file__).parent / "two_processes.py"
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(script.parents[2])}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(process), address],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for number, (process, (output, noise)) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, noise
        report = json.loads(output.splitlines()[-1])  # gloo writes to stdout too
        first = 4 * number
        assert report["calls"] == [[first, first + 1], [first + 2, first + 3]]
        expected = [float(row % 3 == 1) for row in range(8)]
        assert report["scores"] == [[row, expected[row : row + 2]] for row in (first, first + 2)]
        assert report["same_sharding"] and report["shared"]
        assert report["mean"] == pytest.approx(3 / 8)
