"""A mixture layer against a dense layer of the same active operations, forward, and forward with backward.

python -m launch.bench moe --moe_tokens=2048 --moe_dim=768 --moe_hidden=512 --moe_experts=8
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from launch.benches.measure import DTYPE, ROUNDS, Run, gemm, measure
from rlvr.policy.config import PolicyConfig
from rlvr.policy.mlp import Mlp
from rlvr.policy.moe import Moe

TOKENS = flags.DEFINE_integer("moe_tokens", 2048, "moe: tokens of the batch.", lower_bound=1)
DIM = flags.DEFINE_integer("moe_dim", 768, "moe: D.", lower_bound=1)
HIDDEN = flags.DEFINE_integer("moe_hidden", 512, "moe: F of one expert.", lower_bound=1)
EXPERTS = flags.DEFINE_integer("moe_experts", 8, "moe: E.", lower_bound=1)
EXPERTS_PER_TOKEN = flags.DEFINE_integer("moe_experts_per_token", 2, "moe: k.", lower_bound=1)
BACKENDS = flags.DEFINE_list("moe_backends", ["auto", "dense"], "moe: forms of dispatch to measure.")


def bench_moe() -> dict[str, Any]:
    """Measures the forms of dispatch in turn; ratios are to the dense layer of the same round."""
    tokens, dim, hidden, k = TOKENS.value, DIM.value, HIDDEN.value, EXPERTS_PER_TOKEN.value
    dtype = jnp.dtype(DTYPE.value)
    sizes: dict[str, Any] = {"dim": dim, "experts": EXPERTS.value, "experts_per_token": k, "expert_hidden": hidden}
    x = jax.random.normal(jax.random.key(0), (1, tokens, dim), dtype)
    counts = jnp.ones((1, tokens), jnp.float32)
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
        add(backend, Moe(config), counts, None)
    product, operations = gemm(dtype)
    seconds = measure(runs | {"gemm": product}, ROUNDS.value)
    ceiling = operations / float(np.median(seconds["gemm"]))
    active = {"forward": 6.0 * tokens * k * dim * hidden, "both": 18.0 * tokens * k * dim * hidden}
    print(f"{'layer':24}{'ms':>10}{'x dense layer':>16}{'of the GEMM ceiling':>22}")
    ratios: dict[str, float] = {}
    fractions: dict[str, float] = {}
    for name in runs:
        form, part = name.rsplit(" ", 1)
        ratio = float(np.median(seconds[name] / seconds[f"dense layer {part}"]))
        rate = active[part] / float(np.median(seconds[name]))
        ratios[name.replace(" ", "_")] = round(ratio, 3)
        fractions[name.replace(" ", "_")] = round(rate / ceiling, 3)
        print(f"{form + ', ' + part:24}{1e3 * np.median(seconds[name]):10.1f}{ratio:16.2f}{rate / ceiling:22.2f}")
    return {
        "bench": "moe",
        **sizes,
        "tokens": tokens,
        "dtype": dtype.name,
        "platform": jax.default_backend(),
        "ratios_to_dense_layer": ratios,
        "fractions_of_gemm": fractions,
        "gemm_gflops": round(ceiling / 1e9, 1),
    }
