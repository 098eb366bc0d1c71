"""What the benches share: timing in turn, and the ceilings of the machine."""

from __future__ import annotations

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
            seconds[name].append(timed(run))
    return {name: np.array(values) for name, values in seconds.items()}


def timed(run: Run) -> float:
    """Returns the seconds until what `run` returns is there."""
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def gemm(dtype: Any) -> tuple[Run, float]:
    """Returns square matrix products, and their floating-point operations: the ceiling of the machine."""
    size, products = (1536, 4) if jax.default_backend() == "cpu" else (8192, 16)
    a = jnp.full((size, size), 1.0 / size, dtype)  # products of it stay what it is

    @jax.jit
    def run(a: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, products, lambda _, b: a @ b, a)

    return lambda: run(a), products * 2.0 * size**3


def stream() -> tuple[Run, float]:
    """Returns a sum over a large array, and the bytes that it reads: the ceiling of what is bound by memory."""
    a = jnp.ones(2**25 if jax.default_backend() == "cpu" else 2**30, jnp.float32)
    run = jax.jit(jnp.sum)
    return lambda: run(a), 4.0 * a.size
