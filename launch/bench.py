"""Measures a part of the system against the machine's own ceiling, in the same process.

    python -m launch.bench moe --tokens=2048 --dim=768 --hidden=512 --experts=8 --experts_per_token=2

Prints a table and, as the last line, JSON. Times are medians over rounds in which all forms are run in turn, so that
a machine that changes its speed changes it for all of them; quote the ratios.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from launch import cli
from rlvr import errors
from rlvr.policy.config import PolicyConfig
from rlvr.policy.mlp import Mlp
from rlvr.policy.moe import Moe

ROUNDS = flags.DEFINE_integer("rounds", 9, "Timed rounds, after one that compiles.", lower_bound=3)
TOKENS = flags.DEFINE_integer("tokens", 2048, "moe: tokens of the batch.", lower_bound=1)
DIM = flags.DEFINE_integer("dim", 768, "moe: D.", lower_bound=1)
HIDDEN = flags.DEFINE_integer("hidden", 512, "moe: F of one expert.", lower_bound=1)
EXPERTS = flags.DEFINE_integer("experts", 8, "moe: E.", lower_bound=1)
EXPERTS_PER_TOKEN = flags.DEFINE_integer("experts_per_token", 2, "moe: k.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "moe: type of the activations.")
BACKENDS = flags.DEFINE_list("backends", ["auto", "dense"], "moe: forms of dispatch to measure.")

Run = Callable[[], Any]


def measure(runs: Mapping[str, Run], rounds: int) -> dict[str, np.ndarray]:
    """Returns seconds [rounds] of each run, all taken in turn in every round."""
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


def bench_moe() -> dict[str, Any]:
    """A mixture layer against a dense layer of the same active operations, forward, and forward with backward."""
    tokens, dim, hidden, k = TOKENS.value, DIM.value, HIDDEN.value, EXPERTS_PER_TOKEN.value
    dtype = jnp.dtype(DTYPE.value)
    sizes: dict[str, Any] = {"dim": dim, "experts": EXPERTS.value, "experts_per_token": k, "expert_hidden": hidden}
    x = jax.random.normal(jax.random.key(0), (1, tokens, dim), dtype)
    valid = jnp.ones((1, tokens), bool)
    runs: dict[str, Run] = {}

    def add(name: str, module: Any, *inputs: Any) -> None:
        params = module.init(jax.random.key(1), x, *inputs)

        def out(params: Any, x: jax.Array) -> jax.Array:
            y = module.apply(params, x, *inputs)
            return y[0] if isinstance(y, tuple) else y

        forward = jax.jit(out)
        both = jax.jit(jax.grad(lambda params, x: jnp.sum(out(params, x).astype(jnp.float32) ** 2), argnums=(0, 1)))
        runs[f"{name} forward"] = lambda: forward(params, x)
        runs[f"{name} both"] = lambda: both(params, x)

    add("dense layer", Mlp(PolicyConfig(dim=dim), k * hidden))
    for backend in BACKENDS.value:
        config = PolicyConfig(moe_layers=(0,), moe_backend=backend, **sizes)
        config.validate()
        add(backend, Moe(config), valid, None)
    product, operations = gemm(dtype)
    seconds = measure(runs | {"gemm": product}, ROUNDS.value)
    ceiling = operations / float(np.median(seconds["gemm"]))
    active = {"forward": 6.0 * tokens * k * dim * hidden, "both": 18.0 * tokens * k * dim * hidden}
    print(f"{'layer':24}{'ms':>10}{'x dense layer':>16}{'of the GEMM ceiling':>22}")
    ratios: dict[str, float] = {}
    for name in runs:
        form, part = name.rsplit(" ", 1)
        ratio = float(np.median(seconds[name] / seconds[f"dense layer {part}"]))
        rate = active[part] / float(np.median(seconds[name]))
        ratios[name.replace(" ", "_")] = round(ratio, 3)
        print(f"{form + ', ' + part:24}{1e3 * np.median(seconds[name]):10.1f}{ratio:16.2f}{rate / ceiling:22.2f}")
    return {
        "bench": "moe",
        **sizes,
        "tokens": tokens,
        "dtype": dtype.name,
        "platform": jax.default_backend(),
        "ratios_to_dense_layer": ratios,
        "gemm_gflops": round(ceiling / 1e9, 1),
    }


BENCHES: Mapping[str, Callable[[], dict[str, Any]]] = {"moe": bench_moe}


def main(argv: Sequence[str]) -> None:
    """Runs the bench that is named."""
    if len(argv) != 2:
        raise app.UsageError(f"name one bench (accepted: {', '.join(BENCHES)})")
    errors.check_choice("bench", argv[1], BENCHES)
    print(json.dumps(BENCHES[argv[1]]()))


if __name__ == "__main__":
    cli.run(main)
