"""Memory of the update as rows grow: one sequence of T tokens, forward, loss and backward.

    python -m launch.bench rows --config=configs/quickstart.py --rows_vocab=49152 --rows_lengths=1024,2048,4096

Of the policy of --config, or without it of --shape. For each length it compiles the gradient of one row, reads from the
compiled program what it needs beside its arguments and results (`temporary_mb`) and its largest single array, and runs
it. `logits_mb` is what the logits of all tokens would take alone, `scores_mb` the attention scores of one layer: a
program that held either would show it. `growth` is how the temporary memory grew over the last doubling; 2 is linear.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from launch.benches import flops
from launch.benches.compile import CONFIG
from launch.benches.measure import ROUNDS, gemm, measure
from launch.benches.subject import policy_config, random_params
from launch.benches.workload import peak_gb
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.checks import resolve
from rlvr.learner.batch import Row, TrainBatch, make_batches
from rlvr.learner.update import Totals, UpdateConfig, micro_loss
from rlvr.mesh import MeshConfig, make_mesh
from rlvr.policy.config import REMATS, PolicyConfig
from rlvr.policy.transformer import Policy

LENGTHS = flags.DEFINE_list("rows_lengths", ["1024", "2048", "4096"], "rows: tokens of a completion, in turn.")
VOCAB = flags.DEFINE_integer("rows_vocab", 0, "rows: ids of the vocabulary; 0 for the policy's own.", lower_bound=0)
CHUNK = flags.DEFINE_integer(
    "rows_logprob_chunk", UpdateConfig().logprob_chunk, "rows: see update.logprob_chunk.", lower_bound=1
)
REMAT = flags.DEFINE_enum("rows_remat", "none", REMATS, "rows: see policy.remat.")


def bench_rows() -> dict[str, Any]:
    """Measures each length."""
    config = resolve(CONFIG.value).policy if CONFIG.value else policy_config()
    config = dataclasses.replace(config, vocab_size=VOCAB.value or config.vocab_size, remat=REMAT.value)
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        policy = Policy(config)
        params = random_params(policy, mesh)
        results = [measure_length(policy, params, int(length)) for length in LENGTHS.value]
    names = ("temporary_mb", "largest_mb", "logits_mb", "scores_mb", "peak_gb", "seconds", "fraction_of_gemm")
    print(f"{'T':>8}" + "".join(f"{name:>18}" for name in names))
    for result in results:
        print(f"{result['tokens']:8}" + "".join(f"{result[name]:18.3f}" for name in names))
    return {
        "bench": "rows",
        "platform": jax.default_backend(),
        "vocab_size": config.vocab_size,
        "logprob_chunk": CHUNK.value,
        "remat": REMAT.value,
        "lengths": results,
        "growth": results[-1]["temporary_mb"] / results[max(len(results) - 2, 0)]["temporary_mb"],
    }


def measure_length(policy: Policy, params: Any, tokens: int) -> dict[str, float]:
    """Returns the memory and the time of the gradient of one row."""
    batch = make_row(policy.config, tokens)

    def loss(params: Any, batch: TrainBatch) -> Any:
        totals = Totals(jnp.float32(tokens), jnp.float32(tokens))
        return micro_loss(policy, params, batch, totals, ObjectiveConfig(), 1.0, CHUNK.value)

    gradient = jax.jit(jax.grad(loss, has_aux=True)).lower(params, batch).compile()
    product, operations = gemm(jnp.dtype(policy.config.dtype))
    seconds = measure({"gradient": lambda: gradient(params, batch), "gemm": product}, ROUNDS.value)
    took = float(np.median(seconds["gradient"]))
    needed = 3 * flops.forward_flops(policy.config, tokens, tokens * (tokens + 1) // 2, tokens)
    ceiling = operations / float(np.median(seconds["gemm"]))
    analysis, text = gradient.memory_analysis(), gradient.as_text()
    assert analysis is not None and text is not None, "the backend tells nothing of a compiled program"
    return {
        "tokens": tokens,
        "temporary_mb": analysis.temp_size_in_bytes / 1e6,
        "largest_mb": largest_buffer(text) / 1e6,
        "logits_mb": 4.0 * tokens * policy.config.vocab_size / 1e6,
        "scores_mb": 4.0 * tokens**2 * policy.config.query_heads / 1e6,
        "peak_gb": peak_gb(),
        "seconds": took,
        "gemm_gflops": ceiling / 1e9,
        "fraction_of_gemm": needed / took / ceiling,
    }


def make_row(config: PolicyConfig, tokens: int) -> TrainBatch:
    """Returns one row with one sequence: a short prompt and `tokens` sampled ones."""
    completion = np.random.default_rng(0).integers(0, config.vocab_size, tokens).astype(np.int32)
    row = Row((1, 2, 3, 4), completion, np.full(tokens, -10.0, np.float32), 1.0, 0)
    weights = np.full(1, 1.0 / tokens, np.float32)
    (batch,), _ = make_batches([row], micro_rows=1, length=tokens + 4, weights=weights)
    return jax.tree.map(jnp.asarray, batch)


def largest_buffer(text: str) -> int:
    """Returns the bytes of the largest array of a compiled program, its arguments included."""
    sizes = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
    found = re.findall(r"\b(f32|bf16|s32|u32|pred)\[([\d,]+)\]", text)
    return max(sizes[kind] * int(np.prod([int(n) for n in shape.split(",")])) for kind, shape in found)
