"""The config of an experiment: the components' dataclasses nested in one, checked as a whole, hashed, written.

`ml_collections.config_flags` assigns the fields from the command line, so the dataclasses cannot be frozen;
`resolve` checks everything once, right after parsing, and nothing writes to a config after that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlvr import errors
from rlvr.algo import compatibility
from rlvr.algo.advantages import BINARY, COMPARING, NON_NEGATIVE
from rlvr.algo.curriculum import CurriculumConfig
from rlvr.algo.distill import DistillConfig
from rlvr.algo.kl import LARGEST_ERROR, LOSS_ESTIMATORS
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.rewards import RewardConfig
from rlvr.checkpoint import CheckpointConfig, read_policy_config
from rlvr.data.config import DataConfig
from rlvr.learner.critic import CriticConfig
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import MeshConfig
from rlvr.policy.config import PolicyConfig
from rlvr.policy.lora import LoraConfig
from rlvr.policy.transformer import Policy
from rlvr.rollout.config import EngineConfig
from rlvr.verifiers.pool import VerifierConfig

log = logging.getLogger("rlvr")

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


def resolve(config: ExperimentConfig) -> ExperimentConfig:
    """Returns the config with a checkpoint's policy shape filled in, checked as a whole.

    What works but is likely not what was meant is logged as a warning.

    Raises:
        ConfigError: naming the field, its value and what is accepted.
        WeightsError: `checkpoint` holds no policy.
    """
    if config.checkpoint:
        shape = read_policy_config(Path(config.checkpoint))
        names = ("dtype", "remat", "moe_backend", "moe_exchange", "attention_backend")
        runtime = {name: getattr(config.policy, name) for name in names}
        config = dataclasses.replace(config, policy=dataclasses.replace(shape, **runtime))
    validate(config)
    for warning in compatibility.warn(config.objective, config.update.optimizer_steps):
        log.warning("%s", warning)
    return config


def validate(config: ExperimentConfig) -> None:
    """Raises ConfigError on the first field that cannot work."""
    errors.check_at_least("steps", config.steps, 0)
    errors.check_between("seed", config.seed, 0, 2**32 - 1)
    errors.check_at_least("sample_interval", config.sample_interval, 1)
    errors.check_at_least("watchdog_s", config.watchdog_s, 0.0)
    config.policy.validate()
    config.data.validate()
    config.curriculum.validate(config.rollout.dynamic_rounds > 0)
    config.engine.validate("engine")
    config.verifiers.validate()
    config.reward.validate()
    config.objective.validate()
    config.distill.validate()
    config.optimizer.validate("optimizer")
    config.update.validate("update")
    config.critic.validate()
    config.checkpoints.validate()
    config.rollback.validate()
    config.mesh.validate()
    _validate_rollout(config)
    _validate_credit(config)
    _validate_reference(config)
    _validate_critic(config)
    _validate_distill(config)
    _validate_routing(config)
    _validate_lengths(config)
    _validate_lora(config)
    errors.check_at_least("warm_start.steps", config.warm_start.steps, 0)
    errors.check_at_least("warm_start.rows", config.warm_start.rows, 1)
    errors.check_between("warm_start.hinted", config.warm_start.hinted, 0.0, 1.0)
    config.warm_start.optimizer.validate("warm_start.optimizer")
    errors.check_at_least("evaluation.interval", config.evaluation.interval, 1)
    errors.check_at_least("evaluation.temperature", config.evaluation.temperature, 0.0)


def _validate_credit(config: ExperimentConfig) -> None:
    """Refuses advantages that the rewards or the groups cannot have."""
    objective, reward, group = config.objective, config.reward, config.rollout.group_size
    name = f"objective.advantage={objective.advantage!r}"
    if objective.advantage == "gdpo" and len(reward.parts) < 2:
        raise errors.ConfigError(
            f"{name} normalises several rewards apart, but reward.parts={reward.parts}: name at least two parts of the "
            "verdicts, and their reward.part_weights"
        )
    if objective.advantage in BINARY and objective.pass_k > group:
        raise errors.ConfigError(f"objective.pass_k={objective.pass_k} is more than rollout.group_size={group}")
    changes = {
        "reward.audit_penalty": reward.audit_penalty > 0,
        "reward.length": reward.length.lowers(),
        "objective.kl='k1_in_reward'": objective.kl == "k1_in_reward",
    }
    changed = next((field for field, does in changes.items() if does), None)
    if changed and objective.advantage in NON_NEGATIVE:
        wanted = "rewards of 0 and 1" if objective.advantage in BINARY else "rewards of at least 0"
        raise errors.ConfigError(f"{changed} makes others of the rewards, but {name} is for {wanted}")
    if changed and objective.advantage == "gdpo":
        raise errors.ConfigError(f"{changed} changes the sum of the rewards, which {name} does not look at")
    buffer, budget = reward.length.overlong_buffer, config.engine.max_new_tokens
    if buffer > budget:
        raise errors.ConfigError(f"reward.length.overlong_buffer={buffer} is more than engine.max_new_tokens={budget}")


def _validate_reference(config: ExperimentConfig) -> None:
    objective, samples = config.objective, config.rollout.prompts * config.rollout.group_size
    if objective.kl_target and LARGEST_ERROR * samples >= objective.kl_horizon:
        raise errors.ConfigError(
            f"objective.kl_horizon={objective.kl_horizon:g} is too short for rollout.prompts * rollout.group_size="
            f"{samples} sequences a step: one step could turn the coefficient's sign (accepted: more than "
            f"{LARGEST_ERROR * samples:g})"
        )


def _validate_critic(config: ExperimentConfig) -> None:
    objective, steps = config.objective, config.critic.pretrain_steps
    if not objective.needs_values() and config.critic != CriticConfig():
        raise errors.ConfigError(
            f"critic={config.critic} with objective.advantage={objective.advantage!r}, which has no critic (accepted: "
            "gae)"
        )
    if steps > config.steps:
        raise errors.ConfigError(f"critic.pretrain_steps={steps} is more than steps={config.steps}")
    if not objective.value.bootstrap:
        return
    for field in ("drop_truncated", "overlong_buffer"):
        if value := getattr(config.reward.length, field):
            raise errors.ConfigError(
                f"reward.length.{field}={value} with objective.value.bootstrap=True: what a sample that was cut off is "
                "worth is then its value at the end, whatever its reward"
            )


def _validate_distill(config: ExperimentConfig) -> None:
    """Refuses what does not go with distillation."""
    distill, objective, rollout = config.distill, config.objective, config.rollout
    if distill.method == "none":
        return
    name = f"distill.method={distill.method!r}"
    for field, none in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        if (value := getattr(rollout, field)) != none:
            raise errors.ConfigError(
                f"rollout.{field}={value} with {name}: teacher and student would be compared on the tokens that passed "
                "the filter of one of them"
            )
    if distill.method != "pi":
        return
    if objective.kl in LOSS_ESTIMATORS:
        raise errors.ConfigError(
            f"objective.kl={objective.kl!r} with {name}, which has its own two KLs, of distill.coef (accepted: none)"
        )
    if objective.needs_values():
        raise errors.ConfigError(
            f"objective.advantage={objective.advantage!r} with {name}: the critic's values would be those of the "
            "teacher's prompts alone (accepted: advantages of groups)"
        )
    if objective.routing == "rollout":
        raise errors.ConfigError(
            f"objective.routing='rollout' with {name}: what was recorded is of the teacher's prompt (accepted: live, "
            "old)"
        )
    if distill.alpha < 1 and (objective.old != "rollout" or objective.surrogate == "reinforce"):
        raise errors.ConfigError(
            f"objective.surrogate={objective.surrogate!r}, objective.old={objective.old!r} with {name}: the student "
            "learns from the teacher's samples by the ratio student / teacher as sampled (accepted: a surrogate with a "
            "ratio, and old='rollout')"
        )


def _validate_routing(config: ExperimentConfig) -> None:
    objective, policy = config.objective, config.policy
    if objective.routing != "live" and not policy.moe_layers:
        raise errors.ConfigError(
            f"objective.routing={objective.routing!r} replays the choices of a router, but policy.moe_layers is empty: "
            "only 'live' fits a dense policy"
        )
    if objective.bias_rate and not policy.selection_bias:
        raise errors.ConfigError(
            f"objective.bias_rate={objective.bias_rate} moves selection biases, but policy.selection_bias is false"
        )
    if objective.bias_rate and config.lora.rank:
        raise errors.ConfigError(
            f"objective.bias_rate={objective.bias_rate} moves selection biases, but "
            f"lora.rank={config.lora.rank} trains adapters only: set one of them to 0"
        )


def _validate_lengths(config: ExperimentConfig) -> None:
    engine, limit = config.engine, config.policy.context_length
    if limit and engine.max_prompt_tokens + engine.max_new_tokens > limit:
        raise errors.ConfigError(
            f"engine.max_prompt_tokens={engine.max_prompt_tokens} and engine.max_new_tokens={engine.max_new_tokens} "
            f"are together longer than policy.context_length={limit}, which the weights were made for"
        )


def _validate_lora(config: ExperimentConfig) -> None:
    config.lora.validate(Policy(config.policy))
    if config.lora.rank and not config.checkpoint:
        raise errors.ConfigError(f"lora.rank={config.lora.rank} needs a checkpoint: adapters adapt pretrained weights")


def _validate_rollout(config: ExperimentConfig) -> None:
    rollout = config.rollout
    errors.check_at_least("rollout.prompts", rollout.prompts, 1)
    errors.check_at_least("rollout.group_size", rollout.group_size, 1)
    if rollout.group_size == 1 and config.objective.advantage in COMPARING:
        raise errors.ConfigError(
            "rollout.group_size=1 must be at least 2: "
            f"objective.advantage={config.objective.advantage!r} compares a sample with the others of its group"
        )
    if not rollout.temperature > 0:
        raise errors.ConfigError(f"rollout.temperature={rollout.temperature} must be positive")
    errors.check_at_least("rollout.top_k", rollout.top_k, 0)
    errors.check_between("rollout.top_p", rollout.top_p, 1e-6, 1.0)
    errors.check_between("rollout.staleness", rollout.staleness, 0, 1)
    uncorrected = config.objective.surrogate == "reinforce" and not config.objective.correction.compares()
    if rollout.staleness and uncorrected:
        raise errors.ConfigError(
            f"rollout.staleness={rollout.staleness} with objective.surrogate='reinforce': it takes samples for its own "
            "policy's, which these are not; use a surrogate with a ratio, such as 'clip', or objective.correction"
        )
    errors.check_between("rollout.min_p", rollout.min_p, 0.0, 1.0)
    _validate_dynamic(rollout)
    if "" in rollout.stop_strings:
        raise errors.ConfigError(
            f"rollout.stop_strings={rollout.stop_strings} has an empty text: it would end everything"
        )
    if rollout.prompts % config.update.minibatches:
        raise errors.ConfigError(
            f"rollout.prompts={rollout.prompts} is not a multiple of update.minibatches={config.update.minibatches}"
        )


def _validate_dynamic(rollout: RolloutConfig) -> None:
    errors.check_at_least("rollout.dynamic_rounds", rollout.dynamic_rounds, 0)
    errors.check_between("rollout.oversample", rollout.oversample, 1.0, 100.0)
    name = f"rollout.dynamic_rounds={rollout.dynamic_rounds}"
    if not rollout.dynamic_rounds:
        if rollout.oversample != 1.0:
            raise errors.ConfigError(
                f"rollout.oversample={rollout.oversample} says how much a round samples, but {name}"
            )
        return
    if rollout.group_size == 1:
        raise errors.ConfigError(f"{name} with rollout.group_size=1: no group of one has both right and wrong samples")
    if rollout.staleness:
        raise errors.ConfigError(
            f"{name} with rollout.staleness={rollout.staleness}: a round is sampled once the verdicts on the one "
            "before are there, which is the waiting that staleness is to hide; set one of them to 0"
        )


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
    return {
        name: value
        for name, value in flat.items()
        if not any(name == field or name.startswith(field + ".") for field in RUNTIME_FIELDS)
    }


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
