"""What is minimised: a composition of parts that are chosen by name.

    advantage x ratio level x surrogate x aggregation x off-policy correction x KL x entropy x chosen tokens

Published objectives are points of this product: `rlvr.algo.presets`.
"""

from __future__ import annotations

import dataclasses

from rlvr import errors
from rlvr.algo.advantages import ADVANTAGES
from rlvr.algo.aggregation import AGGREGATIONS
from rlvr.algo.compatibility import refuse
from rlvr.algo.correction import CorrectionConfig
from rlvr.algo.kl import LOSS_ESTIMATORS, REWARD_ESTIMATORS, ReferenceConfig
from rlvr.algo.selection import SelectionConfig
from rlvr.algo.surrogates import RATIOS, SURROGATES, needs_sequence
from rlvr.algo.value import ValueConfig

ROUTINGS = ("live", "rollout", "old")
ANCHORS = ("rollout", "recomputed", "current")
WHITENINGS = ("none", "tokens", "samples")


@dataclasses.dataclass
class ObjectiveConfig:
    """What is minimised.

    Attributes:
        surrogate: key of `SURROGATES`.
        ratio: whose r = policy / old policy the surrogate takes: a "token"'s, or its sequence's, as the geometric mean
            ("seq_geo": GSPO) or the product ("seq_prod") of its tokens'.
        old: the policy that r is taken against, as "rollout": the log-probs recorded at sampling (r spans all there
            is between sampling and now); "recomputed": those of the policy before the step's first update, by the
            trainer's own numerics (decoupled PPO; one more forward pass a step); "current": the policy itself, without
            gradient, so that r = 1.
        advantage: key of `ADVANTAGES`, or "gae": each token's own, from a critic's values (`value`).
        std_ddof, epsilon: of the group's standard deviation (`grpo`, `gdpo`); epsilon also of the mean (`maxrl`).
        pass_k: k of `pass_at_k` and `pkpo`.
        whiten: afterwards the advantages of a rollout are centred and divided by their standard deviation, over its
            "tokens" or its "samples".
        aggregation: key of `AGGREGATIONS`.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]; under "gmpo" the log-ratio, to
            [-clip_low, clip_high].
        dual_clip: c > 1 bounds the loss of "clip" where A < 0, by -c A; 0 is off.
        ratio_cap: two-sided clip, d > 1 + clip_high: the free branch of "clip" takes min(r, d); 0 is off.
        max_weight: largest weight of a token, an absolute one: "cispo" (5), "aspo" (3), "dppo_tv" and "dppo_kl" (20).
        sapo_positive, sapo_negative: temperatures of "sapo".
        vespo_positive, vespo_negative: (k, l) of "vespo" where A >= 0, and where A < 0.
        dro_beta: of "dro".
        divergence: bound of "dppo_tv" (0.15), a difference of probabilities, and "dppo_kl" (0.05), nats.
        kl: in the loss, with the same aggregation as the policy term, "k2", "k3", "k3+" or "k3_is"
            (`LOSS_ESTIMATORS`); "k1_in_reward", taken off a sample's reward; "k1_to_go", taken off each token's
            advantage, as the sum from it on; or "none".
        kl_coef: its coefficient.
        kl_target: > 0 adapts the coefficient, from `kl_coef` on, to this mean KL (nats a token) to the reference.
        kl_horizon: sequences over which it adapts; see `rlvr.algo.kl.adapt_kl_coef`.
        reference: the policy that the KL is taken against.
        entropy_coef: coefficient of the entropy bonus, a global token mean whatever the aggregation.
        entropy_target: > 0 adapts the coefficient, from `entropy_coef` on, to this mean entropy (nats a token) of a
            step; the bonus then counts only after steps at or below it.
        entropy_step, entropy_max: change of the adapted coefficient in a step, and its bound.
        imitation_coef: mu of mu * (mean over the tokens of right samples of -log policy) in the loss (VAPO's NLL of
            positive examples, 2504.05118: 0.1).
        value: of "gae".
        correction: of w = old / rollout.
        selection: tokens that are treated apart.
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
    ratio: str = "token"
    old: str = "rollout"
    advantage: str = "grpo"
    std_ddof: int = 1
    epsilon: float = 1e-6
    pass_k: int = 4
    whiten: str = "none"
    aggregation: str = "seq_mean_token_mean"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    ratio_cap: float = 0.0
    max_weight: float = 5.0
    sapo_positive: float = 1.0
    sapo_negative: float = 1.05
    vespo_positive: tuple[float, float] = (2.0, 3.0)
    vespo_negative: tuple[float, float] = (3.0, 2.0)
    dro_beta: float = 1.0
    divergence: float = 0.15
    kl: str = "none"
    kl_coef: float = 0.0
    kl_target: float = 0.0
    kl_horizon: float = 10_000.0
    reference: ReferenceConfig = dataclasses.field(default_factory=ReferenceConfig)
    entropy_coef: float = 0.0
    entropy_target: float = 0.0
    entropy_step: float = 0.005
    entropy_max: float = 1.0
    imitation_coef: float = 0.0
    value: ValueConfig = dataclasses.field(default_factory=ValueConfig)
    correction: CorrectionConfig = dataclasses.field(default_factory=CorrectionConfig)
    selection: SelectionConfig = dataclasses.field(default_factory=SelectionConfig)
    routing: str = "live"
    balance: str = "switch"
    balance_coef: float = 0.0
    z_coef: float = 0.0
    bias_rate: float = 0.0

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work, or the fields that cannot go together."""
        errors.check_choice("objective.surrogate", self.surrogate, SURROGATES)
        errors.check_choice("objective.ratio", self.ratio, RATIOS)
        errors.check_choice("objective.old", self.old, ANCHORS)
        errors.check_choice("objective.advantage", self.advantage, (*ADVANTAGES, "gae"))
        errors.check_choice("objective.whiten", self.whiten, WHITENINGS)
        errors.check_choice("objective.aggregation", self.aggregation, AGGREGATIONS)
        if self.kl == "k1":
            raise errors.ConfigError(
                "objective.kl='k1': in the loss its gradient is zero in expectation, only noise (accepted: none, "
                f"{', '.join((*LOSS_ESTIMATORS, *REWARD_ESTIMATORS))})"
            )
        errors.check_choice("objective.kl", self.kl, ("none", *LOSS_ESTIMATORS, *REWARD_ESTIMATORS))
        errors.check_choice("objective.routing", self.routing, ROUTINGS)
        errors.check_choice("objective.balance", self.balance, ("switch", "hf"))
        errors.check_between("objective.std_ddof", self.std_ddof, 0, 1)
        errors.check_at_least("objective.pass_k", self.pass_k, 1)
        if self.surrogate != "gmpo":
            errors.check_between("objective.clip_low", self.clip_low, 0.0, 1.0)
        for name in (
            "epsilon clip_low clip_high dual_clip ratio_cap divergence kl_coef kl_target entropy_coef "
            "entropy_target entropy_step entropy_max balance_coef z_coef bias_rate dro_beta imitation_coef"
        ).split():
            errors.check_at_least(f"objective.{name}", getattr(self, name), 0.0)
        errors.check_at_least("objective.max_weight", self.max_weight, 1.0)
        for name in ("sapo_positive", "sapo_negative"):
            errors.check_at_least(f"objective.{name}", getattr(self, name), 1e-3)
        for name in ("vespo_positive", "vespo_negative"):
            pair = getattr(self, name)
            if len(pair) != 2 or not all(x > 0 for x in pair):
                raise errors.ConfigError(f"objective.{name}={pair} must be two positive numbers, (k, l)")
        if (self.kl == "none") != (self.kl_coef == 0.0):
            raise errors.ConfigError(
                f"objective.kl={self.kl!r} with objective.kl_coef={self.kl_coef}: set both, or neither"
            )
        errors.check_at_least("objective.kl_horizon", self.kl_horizon, 1.0)
        self.reference.validate("objective.reference")
        self.value.validate("objective.value")
        self.correction.validate("objective.correction")
        self.selection.validate("objective.selection")
        refuse(self)

    def needs_reference(self) -> bool:
        """Whether the reference's log-probs are part of every step."""
        return self.kl != "none"

    def needs_all_rows(self) -> bool:
        """Whether a row with advantage zero still has a gradient, or is part of a statistic."""
        in_loss = self.kl in LOSS_ESTIMATORS or self.selection.covariance == "kl_cov" or self.surrogate == "dro"
        coefs = self.entropy_coef, self.entropy_target, self.balance_coef, self.z_coef, self.bias_rate
        return in_loss or self.needs_values() or max(*coefs, self.imitation_coef) > 0

    def needs_values(self) -> bool:
        """Whether there is a critic (one more forward pass a step)."""
        return self.advantage == "gae"

    def needs_scores(self) -> bool:
        """Whether a micro-batch's log-probs must be known before its loss (the head is then run once more)."""
        own = self.old == "current" and self.correction.compares()
        return needs_sequence(self) or own or self.correction.opsm > 0

    def needs_proximal(self) -> bool:
        """Whether the log-probs before the step's first update are wanted (one more forward pass a step)."""
        return self.old == "recomputed"

    def needs_measurement(self) -> bool:
        """Whether tokens are chosen over the whole minibatch (one more forward pass for each)."""
        return self.surrogate == "aspo" or self.selection.chooses()
