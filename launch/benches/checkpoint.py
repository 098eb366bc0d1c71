"""Saving and restoring a training state: parameters and both moments of AdamW.

    python -m launch.bench checkpoint --rounds=3 --checkpoint_folder=/data/bench

`blocked_s`: until the run may go on, which is until the arrays are copied. `durable_s`: until the checkpoint is whole
on the disk; here the arrays rest in between, where a run would compute. `restore_s`: until the state is on the devices
again; the files may still be in the system's cache. The ceiling is a plain file of the same bytes, written and synced
to the same folder in the same round.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from launch.benches.measure import ROUNDS
from launch.benches.subject import SHAPE, policy_config, random_params
from launch.benches.workload import peak_gb
from rlvr import timing
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.checkpoint import CheckpointConfig, Checkpoints
from rlvr.learner.learner import Learner
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import MeshConfig, make_mesh
from rlvr.policy.transformer import Policy

FOLDER = flags.DEFINE_string("checkpoint_folder", "", "checkpoint: where to write; '' for the system's temporary one.")


def bench_checkpoint() -> dict[str, Any]:
    """Saves the state `rounds` times, restores it as often, and writes the same bytes plainly."""
    mesh = make_mesh(MeshConfig())
    seconds: dict[str, list[float]] = {"blocked": [], "durable": [], "restore": [], "plain file": []}
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory(dir=FOLDER.value or None) as folder:
        policy = Policy(policy_config())
        learner = Learner(
            policy, ObjectiveConfig(), OptimizerConfig(), UpdateConfig(),
            steps=1, max_length=2, max_columns=1, temperature=1.0, mesh=mesh,
        )  # fmt: skip
        state = learner.fresh(random_params(policy, mesh))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        with contextlib.closing(Checkpoints(Path(folder), CheckpointConfig(keep=1, keep_best=0))) as checkpoints:
            for step in range(1, ROUNDS.value + 1):
                with timing.timed() as durable:
                    with timing.timed() as blocked:
                        checkpoints.save(step, state, {})
                    checkpoints.wait()
                with timing.timed() as restore:
                    restored = checkpoints.restore(lambda step: learner.abstract())
                    jax.block_until_ready(restored)
                assert restored is not None and restored.step == step and checkpoints.failed_saves == 0
                del restored
                for name, took in {"blocked": blocked, "durable": durable, "restore": restore}.items():
                    seconds[name].append(took())
                seconds["plain file"].append(write_plain(Path(folder) / "plain", size))
    return report(size, {name: float(np.median(values)) for name, values in seconds.items()})


def write_plain(path: Path, size: int) -> float:
    """Returns the seconds to write and sync so many bytes; the file is removed again."""
    block = np.random.default_rng(0).bytes(1 << 24)
    with timing.timed() as took, path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    return took()


def report(size: int, took: dict[str, float]) -> dict[str, Any]:
    """Prints the table and returns the result."""
    print(f"{size / 1e9:.3f} GB")
    print(f"{'part':12}{'s':>10}{'GB/s':>10}")
    for name, value in took.items():
        print(f"{name:12}{value:10.3f}{size / 1e9 / value:10.3f}")
    return {
        "bench": "checkpoint",
        "shape": SHAPE.value,
        "platform": jax.default_backend(),
        "bytes": size,
        "blocked_s": took["blocked"],
        "durable_s": took["durable"],
        "restore_s": took["restore"],
        "save_gb_per_s": size / 1e9 / took["durable"],
        "restore_gb_per_s": size / 1e9 / took["restore"],
        "plain_gb_per_s": size / 1e9 / took["plain file"],
        "fraction_of_plain": took["plain file"] / took["durable"],
        "peak_gb": peak_gb(),
    }
