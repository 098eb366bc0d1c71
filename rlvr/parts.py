"""Builds the parts of a run from its config, and checks what only the parts together can show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rlvr import errors, fingerprint, keys, partition
from rlvr.adaptation import Adaptation
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.checkpoint import load_merged_params
from rlvr.config import ExperimentConfig
from rlvr.curriculum import Curriculum
from rlvr.data.pipeline import TaskStream
from rlvr.learner.learner import Learner
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.trainable import Trainable, adapters_only, all_parameters
from rlvr.learner.update import UpdateConfig
from rlvr.policy.config import PolicyConfig
from rlvr.policy.lora import init_adapters
from rlvr.policy.transformer import Params, Policy
from rlvr.rollout.collect import Collector
from rlvr.rollout.engine import Engine
from rlvr.rollout.requests import check_prompt
from rlvr.text.chat import encode_task
from rlvr.text.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from rlvr.types import Task
from rlvr.verifiers.pool import VerifierPool

Demonstration = tuple[Sequence[int], np.ndarray, np.ndarray]


class Parts(NamedTuple):
    """What a run works with.

    Attributes:
        stream, eval_sets: tasks to learn from, and to evaluate on by name.
        curriculum: which tasks of the stream the RL's steps have.
        tokenizer: of the policy.
        collector: samples and verifies.
        trainable: what is trained, and what the policy samples with.
        adaptation: what the adapters adapt, or None if all parameters are trained.
        learner, warm_learner: the updates of the RL and of the warm start.
        initial_params: returns the trained parameters that the run starts from.
        demonstration: (prompt ids, completion ids with the stop token, zeros) of a task, for a warm start.
    """

    stream: TaskStream
    eval_sets: Mapping[str, Sequence[Task]]
    curriculum: Curriculum
    tokenizer: Tokenizer
    collector: Collector
    trainable: Trainable
    adaptation: Adaptation | None
    learner: Learner
    warm_learner: Learner
    initial_params: Callable[[], Params]
    demonstration: Callable[[Task], Demonstration]


def make_parts(
    config: ExperimentConfig,
    mesh: Mesh,
    pool: VerifierPool,
    tokenizer: Tokenizer,
    stream: TaskStream,
    eval_sets: Mapping[str, Sequence[Task]],
) -> Parts:
    """Builds everything a run works with; call within `jax.set_mesh(mesh)`.

    Raises:
        ConfigError: sizes that the mesh does not divide, or a curriculum that does not fit the tasks.
    """
    check_mesh(config.policy, mesh)
    policy = Policy(config.policy)
    engine = Engine(
        policy,
        config.engine,
        tokenizer.stop_ids,
        mesh,
        stop_strings=config.rollout.stop_strings,
        decode_text=tokenizer.decode,
    )
    trainable, adaptation, start = make_trainable(config, policy, mesh)

    def learner(objective: ObjectiveConfig, optimizer: OptimizerConfig, update: UpdateConfig, steps: int) -> Learner:
        return Learner(
            policy,
            objective,
            optimizer,
            update,
            steps=steps * update.optimizer_steps,
            max_length=config.engine.max_prompt_tokens + config.engine.max_new_tokens,
            max_columns=config.engine.max_new_tokens,
            temperature=config.rollout.temperature,
            mesh=mesh,
            trainable=trainable,
            critic=config.critic if objective.needs_values() else None,
        )

    warm = config.warm_start
    imitate = ObjectiveConfig(
        surrogate="reinforce", aggregation="token_mean", balance_coef=warm.balance_coef, z_coef=warm.z_coef
    )
    whole = dataclasses.replace(config.update, minibatches=1, epochs=1)
    return Parts(
        stream=stream,
        eval_sets=eval_sets,
        curriculum=Curriculum(config, stream),
        tokenizer=tokenizer,
        collector=Collector(engine, tokenizer, pool),
        trainable=trainable,
        adaptation=adaptation,
        learner=learner(config.objective, config.optimizer, config.update, config.steps),
        warm_learner=learner(imitate, warm.optimizer, whole, warm.steps),
        initial_params=start,
        demonstration=lambda task: encode_demonstration(tokenizer, task),
    )


def make_trainable(
    config: ExperimentConfig, policy: Policy, mesh: Mesh
) -> tuple[Trainable, Adaptation | None, Callable[[], Params]]:
    """Returns what a run trains, what that adapts (None: nothing), and how it starts."""
    if not config.lora.rank:
        return all_parameters(policy), None, lambda: initial_params(config, policy, mesh)
    base = initial_params(config, policy, mesh)
    adapters = adapters_only(policy, config.lora, base, mesh)
    draw = jax.jit(
        lambda key: init_adapters(config.lora, policy, key), out_shardings=partition.shardings(mesh, adapters.axes)
    )
    origin = Adaptation(config.lora, str(Path(config.checkpoint).absolute()), fingerprint.hash_params(base))
    return adapters, origin, lambda: draw(keys.make_key(config.seed, "adapters"))


def initial_params(config: ExperimentConfig, policy: Policy, mesh: Mesh) -> Params:
    """Returns the policy's parameters at the start: the checkpoint's, or random ones, the same on any mesh."""
    if config.checkpoint:
        return load_merged_params(Path(config.checkpoint), config.policy, mesh)
    shardings = partition.shardings(mesh, policy.logical_axes())
    return jax.jit(policy.init, out_shardings=shardings)(keys.make_key(config.seed, "init"))


def check_mesh(policy: PolicyConfig, mesh: Mesh) -> None:
    """Raises ConfigError naming the dimension of the policy that the mesh does not divide."""
    sizes = {"vocab_size": "vocab", "dim": "embed", "query_heads": "query_heads", "kv_heads": "kv_heads"}
    if len(policy.moe_layers) < policy.layers:
        sizes["hidden"] = "hidden"
    if policy.moe_layers:
        sizes |= {"experts": "experts", "expert_hidden": "expert_hidden", "shared_hidden": "hidden"}
    for name, axis in sizes.items():
        partition.check_divisible(f"policy.{name}", getattr(policy, name), axis, mesh)


def read_tokenizer(config: ExperimentConfig) -> Tokenizer:
    """Returns the checkpoint's tokenizer, or bytes where there is none.

    Raises:
        WeightsError: it cannot be loaded.
        ConfigError: the policy's vocabulary does not hold it.
    """
    tokenizer = load_tokenizer(Path(config.checkpoint) / "tokenizer") if config.checkpoint else ByteTokenizer()
    if tokenizer.vocab_size > config.policy.vocab_size:
        raise errors.ConfigError(
            f"policy.vocab_size={config.policy.vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}"
        )
    return tokenizer


def check_tasks(
    config: ExperimentConfig, tokenizer: Tokenizer, stream: TaskStream, eval_sets: Mapping[str, Sequence[Task]]
) -> set[str]:
    """Looks at every task once, before anything is computed.

    Returns:
        The verifiers that the tasks name.

    Raises:
        DataError: a prompt or demonstration over its budget, or a warm start on a task without demonstration.
    """
    verifiers = set()
    for task in stream.iter_distinct():
        verifiers.add(task.verifier)
        _check_task(config, tokenizer, task, "training")
        if config.warm_start.steps:
            _check_demonstration(config, tokenizer, task)
    return verifiers | check_eval_tasks(config, tokenizer, eval_sets)


def check_eval_tasks(
    config: ExperimentConfig, tokenizer: Tokenizer, eval_sets: Mapping[str, Sequence[Task]]
) -> set[str]:
    """Looks at every evaluation task once; see `check_tasks`."""
    verifiers = set()
    for tasks in eval_sets.values():
        for task in tasks:
            verifiers.add(task.verifier)
            _check_task(config, tokenizer, task, "evaluation")
    return verifiers


def _check_task(config: ExperimentConfig, tokenizer: Tokenizer, task: Task, kind: str) -> None:
    name = f"the {kind} task of {task.task!r} that begins {task.prompt[:60]!r}"
    check_prompt(encode_task(tokenizer, task), config.engine.max_prompt_tokens, name)


def _check_demonstration(config: ExperimentConfig, tokenizer: Tokenizer, task: Task) -> None:
    name = f"the training task of {task.task!r} that begins {task.prompt[:60]!r}"
    if not task.demonstration:
        raise errors.DataError(f"{name} has no demonstration, which warm_start.steps={config.warm_start.steps} needs")
    length = len(encode_demonstration(tokenizer, task)[1])
    if length > config.engine.max_new_tokens:
        raise errors.DataError(
            f"the demonstration of {name} has {length} tokens; accepted: at most "
            f"engine.max_new_tokens={config.engine.max_new_tokens}"
        )


def encode_demonstration(tokenizer: Tokenizer, task: Task) -> Demonstration:
    """Returns (prompt ids, demonstration ids and a stop token, zeros in place of sampled log-probs)."""
    completion = [*tokenizer.encode(task.demonstration), tokenizer.stop_ids[0]]
    return encode_task(tokenizer, task), np.array(completion, np.int32), np.zeros(len(completion), np.float32)
