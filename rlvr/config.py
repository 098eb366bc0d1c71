"""The config of an experiment: the components' dataclasses nested in one, hashed, written.

`ml_collections.config_flags` assigns the fields from the command line, so the dataclasses cannot be frozen;
`rlvr.checks.resolve` checks everything once, right after parsing, and nothing writes to a config after that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Callable, Iterable
from typing import Any

from rlvr import errors
from rlvr.algo.curriculum import CurriculumConfig
from rlvr.algo.distill import DistillConfig
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.rewards import RewardConfig
from rlvr.checkpoint import CheckpointConfig
from rlvr.data.config import DataConfig
from rlvr.learner.critic import CriticConfig
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import MeshConfig
from rlvr.policy.config import PolicyConfig
from rlvr.policy.lora import LoraConfig
from rlvr.rollout.config import EngineConfig
from rlvr.verifiers.pool import VerifierConfig

# Sections that say how a run is carried out, not what it computes: a workdir may be resumed with others.
RUNTIME_FIELDS = (
    "mesh",
    "checkpoints",
    "watchdog_s",
    "verifiers.workers",
    "verifiers.sandbox",
    "warm_start.shared",
    "update.moments",
)


@dataclasses.dataclass
class RolloutConfig:
    """What is sampled in a step.

    Attributes:
        prompts: P, prompts a step.
        group_size: G, samples a prompt.
        temperature: of the sampling; also divides the logits in training.
        top_k, top_p, min_p: filters of the sampling (`rlvr.rollout.sampling.Sampling`); 0, 1 and 0 are none. Training
            leaves out the same tokens (V / 8 bytes for each sampled one).
        stop_strings: texts that end a completion.
        staleness: RL steps between the parameters that sample a rollout and those that learn from it. With 1 each
            step samples the next one's rollout before its own update, so that its verification is hidden behind the
            decoding of the next; the first step's is sampled within it.
        dynamic_rounds: n > 0 is dynamic sampling (DAPO, 2503.14476; 10 there): only groups of which some samples are
            right and some wrong are learned from, and further prompts are sampled until there are `prompts` such
            groups, in at most n rounds. What is then missing is missing: a step may learn from fewer (where there are
            none, from one that is all alike). With 1 nothing is sampled anew. 0 takes the groups as they come.
        oversample: prompts sampled in a round for each group that is missing; with `curriculum.keep_shares` at most
            so many, by the needs of each task. Groups beyond `prompts` are dropped, the last sampled ones.
    """

    prompts: int = 8
    group_size: int = 8
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_strings: tuple[str, ...] = ()
    staleness: int = 0
    dynamic_rounds: int = 0
    oversample: float = 1.0

    def sampling(self) -> dict[str, Any]:
        """Returns the arguments of `Collector.collect` that say what is drawn from."""
        return {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "min_p")}


@dataclasses.dataclass
class WarmStartConfig:
    """Supervised steps on the tasks' demonstrations, before the RL.

    Attributes:
        steps: optimizer steps; 0 for none.
        rows: demonstrations a step.
        hinted: share of them that stand behind the prompt with the hint, which so learns to be read.
        shared: folder of warm starts that were made before: a run whose own is among them begins with the RL, at the
            very numbers that it would have come to, and any other leaves its own there. "" for none; not used by runs
            of several processes. `launch.grid` sets it.
        balance_coef, z_coef: of the router losses; see `ObjectiveConfig`.
        optimizer: of this stage; its state is dropped at the end.
    """

    steps: int = 0
    rows: int = 64
    hinted: float = 0.0
    shared: str = ""
    balance_coef: float = 0.0
    z_coef: float = 0.0
    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig(learning_rate=1e-3))


@dataclasses.dataclass
class EvaluationConfig:
    """Held-out evaluation, greedy unless told otherwise.

    Attributes:
        interval: RL steps between evaluations; the start and the end of the RL are always evaluated.
        temperature: 0 is greedy.
    """

    interval: int = 20
    temperature: float = 0.0


@dataclasses.dataclass
class RollbackConfig:
    """What a run does when its reward collapses, or `optimizer.max_skips` updates in a row are not finite.

    Attributes:
        limit: how often the run goes back to a checkpoint from before the trouble and on with smaller steps; after
            that, and with 0 at once, it ends with an error.
        shrink: factor of the learning rate at each rollback.
        reward_drop: the mean reward of `window` RL steps may fall by so much below the best such mean; 0 for any.
        window: RL steps. Only what `checkpoints` keeps can be gone back to.
    """

    limit: int = 0
    shrink: float = 0.5
    reward_drop: float = 0.0
    window: int = 10

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        errors.check_at_least("rollback.limit", self.limit, 0)
        errors.check_between("rollback.shrink", self.shrink, 1e-6, 1.0)
        errors.check_at_least("rollback.reward_drop", self.reward_drop, 0.0)
        errors.check_at_least("rollback.window", self.window, 1)


@dataclasses.dataclass
class ExperimentConfig:
    """Everything a run depends on.

    Attributes:
        name: for people.
        seed: of all randomness but the data's (`data.seed`).
        steps: RL steps.
        checkpoint: policy folder (or a run's workdir) to start from; "" starts from a random policy over bytes.
            With a checkpoint, the shape in `policy` is the checkpoint's; dtype, remat and the backends are the
            config's.
        sample_interval: steps between those whose best and worst samples are kept for the report.
        watchdog_s: seconds without a dispatch or a step after which a process of `launch.train` shows its stacks and
            ends (`rlvr.watchdog`); longer than the longest compilation. 0 for never.
        Others: see the components.
    """

    name: str = "experiment"
    seed: int = 0
    steps: int = 100
    checkpoint: str = ""
    sample_interval: int = 10
    watchdog_s: float = 3600.0
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    verifiers: VerifierConfig = dataclasses.field(default_factory=VerifierConfig)
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    update: UpdateConfig = dataclasses.field(default_factory=UpdateConfig)
    critic: CriticConfig = dataclasses.field(default_factory=CriticConfig)
    warm_start: WarmStartConfig = dataclasses.field(default_factory=WarmStartConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoints: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    rollback: RollbackConfig = dataclasses.field(default_factory=RollbackConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


def _read_annotations(cls: type) -> None:
    """Replaces the annotations of a dataclass, and of those nested in it, by the types they name.

    `config_flags` parses an override by `Field.type`, which postponed annotations leave as text.
    """
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        field.type = hints[field.name]
        for inner in (field.type, *typing.get_args(field.type)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                _read_annotations(inner)


_read_annotations(ExperimentConfig)


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Returns the config as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(config: ExperimentConfig) -> str:
    """Returns the sha256 of what the run computes (all but `RUNTIME_FIELDS`), 16 hex digits."""
    text = json.dumps(identity(to_dict(config)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields flattened to {"a.b": value}, without `RUNTIME_FIELDS`."""
    flat = _flatten(fields, "")
    return {name: value for name, value in flat.items() if not is_within(name, RUNTIME_FIELDS)}


def is_within(name: str, fields: Iterable[str]) -> bool:
    """Whether a field "a.b" is one of some fields, or part of one."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns a line for each field that makes two configs different runs."""
    a, b = identity(old), identity(new)
    missing = "(absent)"
    return [
        f"{name}: {a.get(name, missing)!r} there, {b.get(name, missing)!r} here"
        for name in sorted(a.keys() | b.keys())
        if a.get(name, missing) != b.get(name, missing)
    ]


def _flatten(value: Any, prefix: str) -> dict[str, Any]:
    if isinstance(value, dict):
        items: Callable[[], Any] = value.items
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = lambda: ((str(i), item) for i, item in enumerate(value))  # noqa: E731
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in items():
        flat |= _flatten(item, f"{prefix}.{name}" if prefix else str(name))
    return flat
