"""Whether a config can work, checked once and as a whole: the components' own checks, and what goes together."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from rlvr import errors
from rlvr.algo import compatibility
from rlvr.algo.advantages import BINARY, COMPARING, NON_NEGATIVE
from rlvr.algo.kl import LARGEST_ERROR, LOSS_ESTIMATORS
from rlvr.config import ExperimentConfig, RolloutConfig
from rlvr.learner.critic import CriticConfig
from rlvr.policy.transformer import Policy
from rlvr.policy_folder import read_policy_config

log = logging.getLogger("rlvr")


def resolve(config: ExperimentConfig) -> ExperimentConfig:
    """Returns the config with a checkpoint's policy shape filled in, checked as a whole.

    What works but is likely not what was meant is logged as a warning.

    Raises:
        ConfigError: naming the field, its value and what is accepted.
        WeightsError: `checkpoint` holds no policy.
    """
    if config.checkpoint:
        config = with_policy_of(config, Path(config.checkpoint))
    validate(config)
    for warning in compatibility.warn(config.objective, config.update.optimizer_steps):
        log.warning("%s", warning)
    return config


def with_policy_of(config: ExperimentConfig, checkpoint: Path) -> ExperimentConfig:
    """Returns the config with the shape of a checkpoint's policy; how that is computed stays the config's.

    Raises:
        WeightsError: the checkpoint holds no policy.
    """
    names = ("dtype", "remat", "moe_backend", "moe_exchange", "attention_backend")
    runtime = {name: getattr(config.policy, name) for name in names}
    return dataclasses.replace(config, policy=dataclasses.replace(read_policy_config(checkpoint), **runtime))


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
    errors.check_temperature("evaluation.temperature", config.evaluation.temperature)


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
    if objective.needs_values():
        raise errors.ConfigError(
            f"objective.advantage={objective.advantage!r} with {name}: the critic's values know neither the teacher's "
            "reward nor its prompts (accepted: advantages of groups)"
        )
    if distill.method != "pi":
        return
    if objective.kl in LOSS_ESTIMATORS:
        raise errors.ConfigError(
            f"objective.kl={objective.kl!r} with {name}, which has its own two KLs, of distill.coef (accepted: none)"
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
    errors.check_temperature("rollout.temperature", rollout.temperature)
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
