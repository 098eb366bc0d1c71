"""Published objectives as points of the product; see `rlvr.algo.objectives`. Numbers are the papers' or their code's.

A preset is the loss only. What belongs to a method besides is set beside it: DAPO's dynamic sampling
(`rollout.dynamic_rounds`) and overlong punishment (`reward.length`), GDPO's rewards (`reward.parts`), the exact
on-policy step of OPO and RLOO (`update.minibatches=1`), PPO's epochs (`update.epochs`), VAPO's steps of the critic
alone (`critic.pretrain_steps`).
"""

from __future__ import annotations

import copy
from typing import Any

from rlvr import errors
from rlvr.algo.correction import CorrectionConfig
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.selection import SelectionConfig
from rlvr.algo.value import ValueConfig

_TOKEN_MEAN: dict[str, Any] = {"aggregation": "token_mean"}
_RECOMPUTED: dict[str, Any] = {**_TOKEN_MEAN, "clip_high": 0.28, "old": "recomputed"}
_GSPO: dict[str, Any] = {"ratio": "seq_geo", "clip_low": 3e-4, "clip_high": 4e-4}

# Differences from the defaults of `ObjectiveConfig`: GRPO without KL, anchored at the log-probs of sampling.
PRESETS: dict[str, dict[str, Any]] = {
    # DeepSeekMath, 2402.03300.
    "grpo": {"kl": "k3", "kl_coef": 0.04},
    # 2503.20783. The constant is the generation budget.
    "dr_grpo": {"advantage": "dr_grpo", "aggregation": "seq_sum_norm"},
    # 2503.14476, without dynamic sampling and the overlong punishment.
    "dapo": {**_TOKEN_MEAN, "clip_high": 0.28},
    # 2507.18071. The two are one formula here, which takes advantages of sequences and of tokens.
    "gspo": _GSPO,
    "gspo_token": _GSPO,
    # 2602.05261. The gradient is a mean length larger than GSPO's.
    "luspo": {"ratio": "seq_geo", "clip_low": 2e-3, "clip_high": 2.5e-3, "aggregation": "seq_mean_token_sum"},
    # MiniMax-M1, 2506.13585; the cap is ScaleRL's, 2510.13786.
    "cispo": {**_TOKEN_MEAN, "surrogate": "cispo", "max_weight": 5.0},
    # 2507.20673.
    "gmpo": {"surrogate": "gmpo", "clip_low": 0.4, "clip_high": 0.4},
    # 2511.20347.
    "sapo": {"surrogate": "sapo"},
    # Archer 2.0, 2510.06062.
    "aspo": {**_TOKEN_MEAN, "surrogate": "aspo", "max_weight": 3.0},
    # 2602.04879.
    "dppo_tv": {**_TOKEN_MEAN, "surrogate": "dppo_tv", "divergence": 0.15, "max_weight": 20.0},
    "dppo_kl": {**_TOKEN_MEAN, "surrogate": "dppo_kl", "divergence": 0.05, "max_weight": 20.0},
    # 2402.14740.
    "rloo": {
        "advantage": "rloo",
        "surrogate": "reinforce",
        "aggregation": "seq_mean_token_sum",
        "kl": "k1_in_reward",
        "kl_coef": 0.05,
    },
    # 2501.03262, and its variant with the group's mean as baseline.
    "reinforce_pp": {**_TOKEN_MEAN, "advantage": "reward", "whiten": "tokens", "kl": "k1_to_go", "kl_coef": 0.01},
    "reinforce_pp_baseline": {**_TOKEN_MEAN, "advantage": "dr_grpo", "whiten": "tokens"},
    # 1707.06347 with GAE (1506.02438); the KL of Tulu 3's, 2411.15124.
    "ppo": {**_TOKEN_MEAN, "advantage": "gae", "whiten": "tokens", "kl": "k1_to_go", "kl_coef": 0.05},
    # 2504.05118, without the group sampling and the pre-training of the critic.
    "vapo": {
        **_TOKEN_MEAN,
        "advantage": "gae",
        "whiten": "tokens",
        "clip_high": 0.28,
        "imitation_coef": 0.1,
        "value": ValueConfig(lam_returns=1.0, length_alpha=0.05),
    },
    # 2508.08221: the group's mean, the batch's deviation.
    "lite_ppo": {**_TOKEN_MEAN, "advantage": "dr_grpo", "whiten": "samples"},
    # 2505.23585.
    "opo": {**_TOKEN_MEAN, "advantage": "opo", "surrogate": "reinforce"},
    # 2602.02710.
    "maxrl": {**_TOKEN_MEAN, "advantage": "maxrl"},
    # 2508.10751, 2505.15201 and 2503.19595.
    "pass_at_k": {**_TOKEN_MEAN, "advantage": "pass_at_k"},
    "pkpo": {**_TOKEN_MEAN, "advantage": "pkpo"},
    "best_of_group": {**_TOKEN_MEAN, "advantage": "best_of_group"},
    # 2601.05242.
    "gdpo": {"advantage": "gdpo", "whiten": "samples"},
    # Williams, 1992.
    "reinforce": {"advantage": "reward", "surrogate": "reinforce", "aggregation": "seq_mean_token_sum"},
    # 1912.09729, and INTELLECT-2, 2505.07291.
    "dual_clip": {**_TOKEN_MEAN, "dual_clip": 3.0},
    "two_sided_clip": {"ratio_cap": 4.0, "kl": "k3", "kl_coef": 0.001},
    # 2505.22617, and 2506.01939.
    "clip_cov": {**_TOKEN_MEAN, "selection": SelectionConfig(covariance="clip_cov")},
    "kl_cov": {**_TOKEN_MEAN, "surrogate": "plain", "selection": SelectionConfig(covariance="kl_cov")},
    "top_entropy": {**_TOKEN_MEAN, "clip_high": 0.28, "selection": SelectionConfig(top_entropy=0.2)},
    # Skywork-OR1, 2505.22312.
    "adaptive_entropy": {**_TOKEN_MEAN, "entropy_target": 0.2},
    # For samples of a policy many updates older: 2510.01161, 2602.10693 and 2405.19107.
    "m2po": {**_TOKEN_MEAN, "surrogate": "plain", "selection": SelectionConfig(second_moment=0.04)},
    "vespo": {**_TOKEN_MEAN, "surrogate": "vespo", "ratio": "seq_prod"},
    "dro": {**_TOKEN_MEAN, "surrogate": "dro"},
    # Corrections of the gap between sampling and training, and of staleness; the first is decoupled PPO (2505.24298).
    "decoupled": {**_RECOMPUTED, "correction": CorrectionConfig("untruncated")},
    "tis": {**_RECOMPUTED, "correction": CorrectionConfig("tis", high=2.0)},
    "seq_tis": {**_RECOMPUTED, "correction": CorrectionConfig("tis", level="seq_prod", high=5.0)},
    "mis": {**_RECOMPUTED, "correction": CorrectionConfig("mis", high=5.0)},
    "seq_mis": {**_RECOMPUTED, "correction": CorrectionConfig("mis", level="seq_prod", high=3.0)},
    "icepop": {**_RECOMPUTED, "correction": CorrectionConfig("icepop", low=0.5, high=5.0)},
    "seq_mask_tis": {
        **_RECOMPUTED,
        "correction": CorrectionConfig("untruncated", reject="seq_geo", reject_low=0.999, reject_high=1.002),
    },
    # DeepSeek-V3.2, 2512.02556: sequences that the policy has left behind, and its weighted k3.
    "opsm": {"kl": "k3_is", "kl_coef": 0.001, "correction": CorrectionConfig(opsm=0.5)},
}


def preset(name: str, **changes: Any) -> ObjectiveConfig:
    """Returns a new config of a published objective.

    Args:
        name: key of `PRESETS`.
        changes: fields of `ObjectiveConfig` that are to be others.

    Raises:
        ConfigError: there is no such preset.
    """
    errors.check_choice("objective preset", name, PRESETS)
    # A config is mutable until it is resolved: none may share a part with the table.
    return ObjectiveConfig(**{**copy.deepcopy(PRESETS[name]), **changes})
