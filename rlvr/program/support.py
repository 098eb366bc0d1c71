"""Which configs the program can express; the others are refused by the name of the field, before anything runs."""

from __future__ import annotations

from typing import Any

from rlvr import errors
from rlvr.config import ExperimentConfig, identity, to_dict
from rlvr.data.arithmetic import ArithmeticOptions
from rlvr.data.config import parse_options

_MOST_LOGITS = 1 << 27  # floats of the logits of one minibatch: they are all held at once

# Fields and sections that the program follows, or that change nothing of what it computes. Any other field must have
# its default value: a field that is new somewhere else is refused until it is followed here.
_FOLLOWED = (
    "name",
    "seed",
    "steps",
    "sample_interval",
    "policy",
    "data",
    "engine",
    "rollout.prompts",
    "rollout.group_size",
    "rollout.temperature",
    "rollout.staleness",
    "reward.on_timeout",
    "reward.on_error",
    "reward.on_refused",
    "reward.length.cosine",
    "reward.length.right_short",
    "reward.length.right_long",
    "reward.length.wrong_short",
    "reward.length.wrong_long",
    "reward.length.linear",
    "reward.length.overlong_buffer",
    "reward.length.overlong_weight",
    "reward.length.drop_truncated",
    *(
        f"objective.{name}"
        for name in (
            "surrogate ratio old advantage std_ddof epsilon pass_k whiten aggregation clip_low clip_high dual_clip "
            "ratio_cap max_weight sapo_positive sapo_negative vespo_positive vespo_negative dro_beta divergence kl "
            "kl_coef entropy_coef entropy_target entropy_step entropy_max correction selection"
        ).split()
    ),
    "optimizer",
    "update",
    "warm_start.steps",
    "warm_start.rows",
    "warm_start.optimizer",
    "evaluation",
)
_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "policy.moe_layers": ([],),
    "policy.dtype": ("float32",),
    "engine.dtype": ("", "float32"),
    "objective.advantage": tuple("reward grpo dr_grpo rloo opo maxrl pass_at_k pkpo best_of_group".split()),
    "objective.selection.covariance": ("none", "kl_cov"),
    "update.epochs": (1,),
}


def check_expressible(config: ExperimentConfig) -> None:
    """Raises ConfigError, naming field, value and what is accepted, if runs of the config need the ordinary loop."""
    fields, defaults = identity(to_dict(config)), identity(to_dict(ExperimentConfig()))
    for name, value in fields.items():
        if not any(name == known or name.startswith(known + ".") for known in _FOLLOWED):
            _accept(name, value, defaults.get(name))
        if name in _ACCEPTED:
            _accept(name, value, *_ACCEPTED[name])
    for i, task_set in enumerate(config.data.tasks):
        field = f"data.tasks[{i}]"
        _accept(f"{field}.source", task_set.source, "arithmetic")
        _accept(f"{field}.answer_format", task_set.answer_format, "bare")
        options = parse_options(ArithmeticOptions, task_set.options, field)
        _accept(f"{field}.options['verifier']", options.verifier, "exact")
    rollout, budget = config.rollout, config.engine.max_new_tokens
    tokens = rollout.prompts * rollout.group_size // config.update.minibatches * budget
    vocab = config.policy.vocab_size
    if tokens * vocab > _MOST_LOGITS:
        raise errors.ConfigError(
            f"rollout.prompts={rollout.prompts}, rollout.group_size={rollout.group_size} and engine.max_new_tokens="
            f"{budget} make {tokens} tokens a minibatch, whose logits over policy.vocab_size={vocab} one program would "
            "hold at once: too many for it"
        )


def _accept(field: str, value: Any, *accepted: Any) -> None:
    if value not in accepted:
        raise errors.ConfigError(
            f"{field}={value!r} cannot be part of one program (accepted: {', '.join(map(repr, accepted))}); "
            "without --one_program it runs"
        )
