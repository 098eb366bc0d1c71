"""Per-token losses. An objective is advantage estimator x surrogate x aggregation x KL x entropy; the parts are
chosen by name, and this file holds the surrogates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlvr import errors
from rlvr.algo.advantages import ADVANTAGES
from rlvr.algo.aggregation import AGGREGATIONS
from rlvr.algo.kl import LOG_RATIO_LIMIT, LOSS_ESTIMATORS

ROUTINGS = ("live", "rollout", "old")


@dataclasses.dataclass
class ObjectiveConfig:
    """What is minimised.

    Attributes:
        surrogate: key of `SURROGATES`.
        advantage: key of `ADVANTAGES`.
        std_ddof, epsilon: of the group's standard deviation (`grpo`).
        aggregation: key of `AGGREGATIONS`, with denominators global over the optimizer step.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        kl: "none", "k2" or "k3" in the loss (same aggregation as the policy term), or "k1_in_reward".
        kl_coef: its coefficient.
        entropy_coef: coefficient of the entropy bonus, a global token mean whatever the aggregation.
        routing: which experts the rows of a mixture policy use in training: "live" (the router's choice now),
            "rollout" (as recorded at sampling: Ma et al., 2510.11370) or "old" (the policy's own before the step's
            first update: Zheng et al., 2507.18071). The gates are computed anew, so that the router learns.
        balance: convention of the load-balance loss, "switch" (1 at perfect balance) or "hf" (k); a key of
            `rlvr.policy.router.BALANCE_LOSSES`.
        balance_coef, z_coef: of the router losses, token-weighted means over micro-batches.
        bias_rate: after every update each expert's `selection_bias` moves by this much towards balance
            (DeepSeek-V3, 2412.19437); 0 keeps it frozen, as one mostly wants in RL: a bias that moves changes the
            routing between sampling and training.
    """

    surrogate: str = "clip"
    advantage: str = "grpo"
    std_ddof: int = 1
    epsilon: float = 1e-6
    aggregation: str = "seq_mean_token_mean"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: str = "none"
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    routing: str = "live"
    balance: str = "switch"
    balance_coef: float = 0.0
    z_coef: float = 0.0
    bias_rate: float = 0.0

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        errors.check_choice("objective.surrogate", self.surrogate, SURROGATES)
        errors.check_choice("objective.advantage", self.advantage, ADVANTAGES)
        errors.check_choice("objective.aggregation", self.aggregation, AGGREGATIONS)
        errors.check_choice("objective.kl", self.kl, ("none", "k1_in_reward", *LOSS_ESTIMATORS))
        errors.check_choice("objective.routing", self.routing, ROUTINGS)
        errors.check_choice("objective.balance", self.balance, ("switch", "hf"))
        errors.check_between("objective.std_ddof", self.std_ddof, 0, 1)
        errors.check_between("objective.clip_low", self.clip_low, 0.0, 1.0)
        for name in ("epsilon", "clip_high", "kl_coef", "entropy_coef", "balance_coef", "z_coef", "bias_rate"):
            errors.check_at_least(f"objective.{name}", getattr(self, name), 0.0)
        if (self.kl == "none") != (self.kl_coef == 0.0):
            raise errors.ConfigError(
                f"objective.kl={self.kl!r} with objective.kl_coef={self.kl_coef}: set both, or neither"
            )

    def needs_reference(self) -> bool:
        """Whether the start policy's log-probs are part of every step."""
        return self.kl != "none"

    def needs_all_rows(self) -> bool:
        """Whether a row with advantage zero still has a gradient."""
        in_loss = self.kl in LOSS_ESTIMATORS
        return in_loss or max(self.entropy_coef, self.balance_coef, self.z_coef, self.bias_rate) > 0


def clip(
    logprobs: jax.Array, old_logprobs: jax.Array, advantages: jax.Array, config: ObjectiveConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = policy / old policy (PPO, 1707.06347).

    Args:
        logprobs: [R, C] of the sampled tokens, with gradient.
        old_logprobs: [R, C] at the start of the update; here those recorded at sampling, since one function samples
            and trains (the gap between the two is logged at every step).
        advantages: [R, C].

    Returns:
        (loss [R, C], indicators [R, C] to be averaged over tokens: where a clipped branch is the active one.)
    """
    log_ratio = jnp.clip(logprobs - old_logprobs, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = jnp.exp(log_ratio)
    free = ratio * advantages
    clipped = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high) * advantages
    active = clipped < free
    indicators = {"clip/high": active & (advantages > 0), "clip/low": active & (advantages < 0)}
    return -jnp.minimum(free, clipped), indicators


def reinforce(
    logprobs: jax.Array, old_logprobs: jax.Array, advantages: jax.Array, config: ObjectiveConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """-A log policy (Williams, 1992); with advantages of one it is supervised learning. See `clip`."""
    del old_logprobs, config
    return -advantages * logprobs, {}


SURROGATES: dict[str, Callable[..., tuple[jax.Array, dict[str, jax.Array]]]] = {
    "clip": clip,
    "reinforce": reinforce,
}
