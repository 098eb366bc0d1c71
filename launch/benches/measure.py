"""What the benches share: timing in turn, the machine's ceiling, and the memory of this process."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

ROUNDS = flags.DEFINE_integer("rounds", 9, "Timed rounds, after one that compiles.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the activations.")

Run = Callable[[], Any]


def measure(runs: Mapping[str, Run], rounds: int) -> dict[str, np.ndarray]:
    """Returns seconds [rounds] of each run, all taken in turn in every round, after one round that compiles."""
    for run in runs.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def gemm(dtype: Any, size: int = 1536) -> tuple[Run, float]:
    """Returns a square matrix product, and its floating-point operations: the ceiling of the machine."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    return lambda: product(a, a), 2.0 * size**3


def peak_gb() -> float:
    """Returns the largest resident memory that this process ever had, in 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
