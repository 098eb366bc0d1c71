"""Builds the parts of a run from its config, and checks what only the parts together can show."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rlvr import errors, fingerprint, keys, partition
from rlvr.adaptation import Adaptation
from rlvr.algo.distill import DistillConfig
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.config import ExperimentConfig
from rlvr.curriculum import Curriculum
from rlvr.data.pipeline import TaskStream
from rlvr.learner.batch import Row
from rlvr.learner.learner import Learner
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.scoring import Layout, make_scorer
from rlvr.learner.trainable import Trainable, adapters_only, all_parameters
from rlvr.learner.update import Teaching, UpdateConfig
from rlvr.policy.config import PolicyConfig
from rlvr.policy.lora import init_adapters
from rlvr.policy.transformer import Params, Policy
from rlvr.policy_folder import load_merged_params, read_policy_config
from rlvr.rollout.collect import Collector
from rlvr.rollout.engine import Engine
from rlvr.rollout.requests import check_prompt
from rlvr.text.chat import encode_task
from rlvr.text.tokenizer import ByteTokenizer, Tokenizer, check_stop_strings, is_same_vocabulary, load_tokenizer
from rlvr.types import Task
from rlvr.verifiers.numerals import parse_quantity
from rlvr.verifiers.pool import VerifierPool


class Teacher(NamedTuple):
    """Another policy to distil from.

    Attributes:
        policy, params: on the run's mesh.
        score: rows -> log-probs of each row's completion.
    """

    policy: Policy
    params: Params
    score: Callable[[Sequence[Row]], list[np.ndarray]]


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
        teacher: the policy of `distill.checkpoint`, or None.
        demonstrate: maps tasks to the rows of a warm start's step, each with advantage one.
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
    teacher: Teacher | None
    demonstrate: Callable[[Sequence[Task]], list[Row]]


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
    partition.check_memory("update.moments", config.update.moments, mesh)
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
    teacher = load_teacher(config, tokenizer, mesh)

    def learner(
        objective: ObjectiveConfig, optimizer: OptimizerConfig, update: UpdateConfig, steps: int, **teaching: Any
    ) -> Learner:
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
            **teaching,
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
        learner=learner(
            config.objective,
            config.optimizer,
            config.update,
            config.steps,
            distill=None if config.distill.method == "none" else config.distill,
            teaching=make_teaching(config.distill, policy, trainable, teacher),
        ),
        warm_learner=learner(imitate, warm.optimizer, whole, warm.steps),
        initial_params=start,
        teacher=teacher,
        demonstrate=functools.partial(demonstrate, tokenizer, warm.hinted),
    )


def load_teacher(config: ExperimentConfig, tokenizer: Tokenizer, mesh: Mesh) -> Teacher | None:
    """Returns the policy of `distill.checkpoint`.

    Raises:
        WeightsError: it cannot be loaded.
        ConfigError: its tokens are not the run's.
    """
    folder = Path(config.distill.checkpoint)
    if not config.distill.checkpoint:
        return None
    shape = read_policy_config(folder)
    if not is_same_vocabulary(load_tokenizer(folder / "tokenizer"), tokenizer):
        raise errors.ConfigError(
            f"distill.checkpoint={str(folder)!r} has another tokenizer than the policy: distillation compares the "
            "probabilities of the same tokens"
        )
    if config.distill.form == "full" and shape.vocab_size != config.policy.vocab_size:
        raise errors.ConfigError(
            f"distill.checkpoint={str(folder)!r} has vocab_size={shape.vocab_size}, the policy "
            f"{config.policy.vocab_size}: distill.form='full' compares them id by id (accepted: distill.form='sampled')"
        )
    policy, params = Policy(shape), load_merged_params(folder, shape, mesh)
    layout = Layout(config.update.row_tokens, config.update.micro_tokens, mesh)
    score = make_scorer(policy, layout, temperature=config.rollout.temperature, chunk=config.update.logprob_chunk)
    return Teacher(policy, params, functools.partial(score, params))


def make_teaching(
    distill: DistillConfig, policy: Policy, trainable: Trainable, teacher: Teacher | None
) -> Teaching | None:
    """Returns what the update compares distributions with, if it does."""
    if not distill.compares():
        return None
    if teacher is not None:
        return Teaching(distill, teacher.policy, lambda own, frozen, given: given or own)
    if distill.teacher in ("start", "ema"):
        return Teaching(distill, policy, lambda own, frozen, given: trainable.join(given or own, frozen))
    return Teaching(distill, policy, lambda own, frozen, given: own)


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
        ConfigError: the policy's vocabulary does not hold it, or a stop string holds a special token.
    """
    tokenizer = load_tokenizer(Path(config.checkpoint) / "tokenizer") if config.checkpoint else ByteTokenizer()
    if tokenizer.vocab_size > config.policy.vocab_size:
        raise errors.ConfigError(
            f"policy.vocab_size={config.policy.vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}"
        )
    check_stop_strings(tokenizer, config.rollout.stop_strings, "rollout.stop_strings")
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
    warm, show = config.warm_start, config.distill.shows_hints()
    for task in stream.iter_distinct():
        verifiers.add(task.verifier)
        _check_task(config, tokenizer, task, "training")
        if show or (warm.steps and warm.hinted):
            _check_task(config, tokenizer, task, "training", hinted=True)
        if warm.steps:
            for hinted in (False, True)[warm.hinted == 1 : 1 + (warm.hinted > 0)]:
                _check_demonstration(config, tokenizer, task, hinted)
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


def _check_task(config: ExperimentConfig, tokenizer: Tokenizer, task: Task, kind: str, hinted: bool = False) -> None:
    name = f"the {kind} task of {task.task!r} that begins {task.prompt[:60]!r}{', with its hint,' if hinted else ''}"
    ids = encode_task(tokenizer, task, hinted=hinted)
    check_prompt(ids, config.engine.max_prompt_tokens, name)
    if task.verifier == "numeric" and parse_quantity(task.answer) is None:
        raise errors.DataError(
            f"{name} has the answer {task.answer[:60]!r}, which verifier='numeric' does not read as a number (accepted "
            "there: 'math' for lists and expressions, 'exact' for texts)"
        )
    if hinted and ids == encode_task(tokenizer, task):
        raise errors.DataError(f"{name} is the same prompt as without")


def _check_demonstration(config: ExperimentConfig, tokenizer: Tokenizer, task: Task, hinted: bool) -> None:
    name = f"the training task of {task.task!r} that begins {task.prompt[:60]!r}"
    if not (task.hinted_demonstration if hinted else task.demonstration):
        raise errors.DataError(f"{name} has no demonstration, which warm_start.steps={config.warm_start.steps} needs")
    length = len(encode_demonstration(tokenizer, task, hinted=hinted)[1])
    if length > config.engine.max_new_tokens:
        raise errors.DataError(
            f"the demonstration of {name} has {length} tokens; accepted: at most "
            f"engine.max_new_tokens={config.engine.max_new_tokens}"
        )


def demonstrate(tokenizer: Tokenizer, hinted: float, tasks: Sequence[Task]) -> list[Row]:
    """Returns the tasks' demonstrations as rows with advantage one.

    Args:
        hinted: share of them that stand behind the prompt with the hint, spread evenly.
    """
    shown = [int((i + 1) * hinted) > int(i * hinted) for i in range(len(tasks))]
    told = [encode_demonstration(tokenizer, task, hinted=h) for task, h in zip(tasks, shown, strict=True)]
    return [Row(p, c, np.zeros(len(c), np.float32), 1.0, i) for i, (p, c) in enumerate(told)]


def encode_demonstration(tokenizer: Tokenizer, task: Task, *, hinted: bool = False) -> tuple[list[int], np.ndarray]:
    """Returns (prompt ids, ids of the demonstration and of a stop token)."""
    text = task.hinted_demonstration if hinted else task.demonstration
    completion = [*tokenizer.encode(text), tokenizer.stop_ids[0]]
    return encode_task(tokenizer, task, hinted=hinted), np.array(completion, np.int32)
