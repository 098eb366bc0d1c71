"""google-tunix 0.1.7 on the CPU: its vanilla sampler and its GRPO learner.

What is given to it, so that the comparison is with its best: programs are compiled before the timed calls; end and pad
ids lie outside the vocabulary, so that nothing is masked by chance and no bias is needed against an early stop; weights
are float32 and its remat is off. In the long tail its decode loop, which cannot take a limit for each sequence, is told
the longest length of each batch as a traced number: one program, which stops at exactly that token, as it would if all
other sequences had met their end before. In GRPO all rows are sampled in one batch; `micro_rows` rows are a pass.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import jobs
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3 import model as llama3
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig

from launch.benches import workload


class Ids:
    """A tokenizer whose text is the ids themselves, in digits; its end and pad ids are outside the vocabulary."""

    def __init__(self, vocab_size: int):
        self._vocab_size = vocab_size

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0  # none is put before a prompt

    def eos_id(self) -> int:
        return self._vocab_size

    def pad_id(self) -> int:
        return self._vocab_size + 1


def make_model(shape: workload.Shape, mesh: Any) -> nnx.Module:
    """Returns the model with random float32 weights (its own initialisation leaves the feed-forward layers zero)."""
    config = llama3.ModelConfig(
        num_layers=shape.layers,
        vocab_size=shape.vocab_size,
        embed_dim=shape.dim,
        hidden_dim=shape.hidden,
        num_heads=shape.query_heads,
        head_dim=shape.head_size,
        num_kv_heads=shape.kv_heads,
        rope_theta=int(shape.theta),
        norm_eps=1e-5,
        weight_tying=True,
    )
    with mesh:
        model = llama3.Llama3(config, rngs=nnx.Rngs(0))
        rng = np.random.default_rng(0)

        def draw(leaf: jax.Array) -> jax.Array:
            if leaf.ndim == 1:
                return jnp.ones(leaf.shape, jnp.float32)
            return jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32))

        nnx.update(model, jax.tree.map(draw, nnx.state(model)))
    return model


def make_mesh() -> Any:
    return jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def make_sampler(shape: workload.Shape, tokens: int) -> Sampler:
    cache = CacheConfig(tokens, shape.layers, shape.kv_heads, shape.head_size)
    return Sampler(make_model(shape, make_mesh()), Ids(shape.vocab_size), cache)


def as_text(prompts: Any) -> list[str]:
    return [" ".join(map(str, prompt)) for prompt in prompts]


def sample(sampler: Sampler, prompts: list[str], arguments: Namespace, new_tokens: int, seed: int) -> list[int]:
    """Samples one batch and returns how many tokens each sequence got."""
    output = sampler(
        prompts,
        max_generation_steps=new_tokens,
        max_prompt_length=arguments.prompt_tokens,
        temperature=1.0,
        top_p=1.0,
        seed=seed,
    )
    return [len(tokens) for tokens in output.tokens]


def rollout(arguments: Namespace, shape: workload.Shape) -> dict[str, Any]:
    """One static batch; see `jobs`."""
    new = arguments.new_tokens
    sampler = make_sampler(shape, arguments.prompt_tokens + new)
    prompts = as_text(workload.make_prompts(arguments.rows, arguments.prompt_tokens, shape.vocab_size))
    seconds = []
    for seed in range(1 + arguments.repeats):
        began = time.perf_counter()
        counts = sample(sampler, prompts, arguments, new, seed)
        seconds.append(time.perf_counter() - began)
        assert counts == [new] * arguments.rows, counts
    return {
        "tokens_per_s": arguments.rows * new * arguments.repeats / sum(seconds[1:]),
        "seconds": seconds[1:],
        "first_s": seconds[0],
    }


def tail(arguments: Namespace, shape: workload.Shape) -> dict[str, Any]:
    """Static batches of a long tail; see `jobs`."""
    sampler = make_sampler(shape, arguments.prompt_tokens + arguments.longest)
    prompts = as_text(workload.make_prompts(arguments.completions, arguments.prompt_tokens, shape.vocab_size))
    decode = sampler._compiled_decode_fn
    stop = arguments.longest

    def decode_until(params: Any, state: Any) -> Any:
        # A leaf of the state, so the loop's bound is traced and the program is the same for all batches.
        return decode(params, dataclasses.replace(state, total_sampling_steps=arguments.prompt_tokens + stop))

    sampler._compiled_decode_fn = decode_until
    batches = jobs.tail_batches(arguments)
    seconds = []
    for i, batch in enumerate([[1] * arguments.rows, *batches]):  # the first compiles
        stop = max(batch)
        start = max(i - 1, 0) * arguments.rows
        began = time.perf_counter()
        sample(sampler, prompts[start : start + len(batch)], arguments, arguments.longest, i)
        seconds.append(time.perf_counter() - began)
    return jobs.tail_result(arguments, sum(seconds[1:]), seconds[0])


def step(arguments: Namespace, shape: workload.Shape) -> dict[str, Any]:
    """GRPO steps; see `jobs`. A step ends when its new parameters are there."""
    rows = arguments.prompts * arguments.samples
    if arguments.micro_rows % arguments.samples:
        raise SystemExit(f"--micro_rows={arguments.micro_rows} must be a multiple of --samples={arguments.samples}")
    mesh = make_mesh()
    model = make_model(shape, mesh)
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.ROLLOUT)
    config = rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys(roles, mesh),
        rollout_engine="vanilla",
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.adamw(1e-5),
            eval_every_n_steps=10**6,
            max_steps=arguments.steps,
            mini_batch_size=arguments.prompts,
            train_micro_batch_size=arguments.micro_rows // arguments.samples,
            rollout_micro_batch_size=arguments.prompts,
            compute_logps_micro_batch_size=arguments.prompts,
        ),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=arguments.new_tokens,
            max_prompt_length=arguments.prompt_tokens,
            kv_cache_size=arguments.prompt_tokens + arguments.new_tokens,
            temperature=1.0,
            top_p=1.0,
        ),
    )
    seen: list[int] = []

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        seen.append(len(completions))
        assert all(len(text.split()) == arguments.new_tokens for text in completions)
        return [workload.dummy_reward(text) for text in completions]

    times: list[float] = []

    def batches() -> Iterator[dict[str, Any]]:
        for i in range(arguments.steps):
            if i:
                jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))
                times.append(time.perf_counter())
            prompts = workload.make_prompts(arguments.prompts, arguments.prompt_tokens, shape.vocab_size, seed=i)
            yield {"prompts": np.array(as_text(prompts))}

    with mesh:
        cluster = rl_cluster.RLCluster(actor=model, tokenizer=Ids(shape.vocab_size), cluster_config=config)
        learner = GRPOLearner(
            cluster, GRPOConfig(num_generations=arguments.samples, num_iterations=1, beta=0.0), reward
        )
        times.append(time.perf_counter())
        learner.train(batches())
        jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))
        times.append(time.perf_counter())
    assert seen == [rows] * arguments.steps, seen
    return jobs.step_result(times)


if __name__ == "__main__":
    jobs.main("tunix", __doc__, {"rollout": rollout, "tail": tail, "step": step})
