"""Which parts of an objective do not go together: what is refused, and what is allowed with a warning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlvr.algo.value import ValueConfig
from rlvr.errors import ConfigError

if TYPE_CHECKING:
    from rlvr.algo.objectives import ObjectiveConfig

# Why a surrogate takes the ratios of tokens only.
_TOKEN_ONLY = {
    "cispo": "it weighs each token's log-prob by that token's ratio",
    "sapo": "its gate is one of tokens",
    "gmpo": "it makes the geometric mean itself, of clipped token ratios",
    "aspo": "it inverts the ratios of single tokens",
    "dppo_tv": "its bound is one on the probability of a token",
    "dppo_kl": "its bound is one on the probability of a token",
    "dro": "its quadratic term is one of tokens",
}
# Largest clip that can act on the geometric mean of a sequence's ratios; GSPO's own is 0.0004.
_LARGEST_SEQUENCE_CLIP = 0.05


def refuse(config: ObjectiveConfig) -> None:
    """Raises ConfigError naming the fields that cannot go together, and why."""
    surrogate = config.surrogate
    if config.ratio != "token" and surrogate in _TOKEN_ONLY:
        raise ConfigError(
            f"objective.ratio={config.ratio!r} with objective.surrogate={surrogate!r}: {_TOKEN_ONLY[surrogate]} "
            "(accepted: token)"
        )
    if config.ratio != "seq_prod" and surrogate == "vespo":
        raise ConfigError(
            f"objective.ratio={config.ratio!r} with objective.surrogate='vespo', whose weight is a function of the "
            "product of a sequence's ratios (accepted: seq_prod)"
        )
    _refuse_anchors(config)
    _refuse_references(config)
    _refuse_values(config)
    for name in ("dual_clip", "ratio_cap"):
        if (value := getattr(config, name)) and surrogate != "clip":
            raise ConfigError(f"objective.{name}={value} is a bound of objective.surrogate='clip', not {surrogate!r}")
    if config.dual_clip and config.dual_clip <= 1:
        raise ConfigError(f"objective.dual_clip={config.dual_clip} must be above 1 (or 0 for none)")
    if config.ratio_cap and config.ratio_cap <= 1 + config.clip_high:
        raise ConfigError(
            f"objective.ratio_cap={config.ratio_cap} must be above 1 + objective.clip_high={1 + config.clip_high:g} "
            "(or 0 for none): below it the clip itself would not act"
        )
    if config.dual_clip and config.ratio_cap:
        raise ConfigError(
            f"objective.dual_clip={config.dual_clip} with objective.ratio_cap={config.ratio_cap}: both bound the loss "
            "of negative advantages; set one"
        )
    if surrogate == "aspo" and config.selection.top_entropy < 1:
        raise ConfigError(
            f"objective.selection.top_entropy={config.selection.top_entropy} with objective.surrogate='aspo', which "
            "has an entropy quantile of its own"
        )
    if config.entropy_target and not config.entropy_step:
        raise ConfigError(
            f"objective.entropy_target={config.entropy_target} with objective.entropy_step=0.0: the coefficient would "
            "never move"
        )
    if config.entropy_coef > config.entropy_max and config.entropy_target:
        raise ConfigError(
            f"objective.entropy_coef={config.entropy_coef} is above objective.entropy_max={config.entropy_max}"
        )


def _refuse_values(config: ObjectiveConfig) -> None:
    if config.advantage != "gae":
        given = {name: x for name, x in vars(config.value).items() if x != getattr(ValueConfig(), name)}
        for name, value in given.items():
            raise ConfigError(
                f"objective.value.{name}={value} with objective.advantage={config.advantage!r}, which has no critic "
                "(accepted: gae)"
            )
        return
    if config.surrogate in ("gmpo", "vespo") or (config.ratio == "seq_prod" and config.surrogate != "reinforce"):
        raise ConfigError(
            f"objective.advantage='gae' with objective.surrogate={config.surrogate!r}, objective.ratio="
            f"{config.ratio!r}: its advantages are those of tokens, and this weighs whole sequences by one"
        )
    if config.correction.opsm:
        raise ConfigError(
            f"objective.correction.opsm={config.correction.opsm} with objective.advantage='gae': it leaves out "
            "sequences by the sign of their advantage, which here tokens have"
        )
    if config.value.length_alpha and config.value.lam != ValueConfig().lam:
        raise ConfigError(
            f"objective.value.lam={config.value.lam} with objective.value.length_alpha={config.value.length_alpha}, "
            "which takes its place; set one"
        )


def _refuse_anchors(config: ObjectiveConfig) -> None:
    surrogate, corrected = config.surrogate, config.correction.compares()
    name = next((n for n in ("rule", "reject") if getattr(config.correction, n) != "none"), "")
    given = f"objective.correction.{name}={getattr(config.correction, name)!r}" if name else ""
    if surrogate.startswith("dppo"):
        if config.old != "rollout":
            raise ConfigError(
                f"objective.old={config.old!r} with objective.surrogate={surrogate!r}, whose bound is one on the "
                "divergence from the policy at sampling (accepted: rollout)"
            )
        if corrected:
            raise ConfigError(
                f"{given} with objective.surrogate={surrogate!r}: its ratio spans all between sampling and now, so "
                "that a further correction counts the gap twice"
            )
    if corrected and config.old == "rollout":
        raise ConfigError(
            f"{given} with objective.old='rollout': w = old / rollout would be 1, or counted twice, as the ratio is "
            "taken against the log-probs at sampling already (accepted: recomputed, current)"
        )
    if config.selection.covariance == "kl_cov" and config.old == "current":
        raise ConfigError(
            "objective.selection.covariance='kl_cov' with objective.old='current': its penalty is |log policy / old|, "
            "which would be 0"
        )


def _refuse_references(config: ObjectiveConfig) -> None:
    update = config.reference.update
    if config.kl != "none" and update == "absent":
        raise ConfigError(
            f"objective.kl={config.kl!r} with objective.reference.update='absent': there is nothing to take it against "
            "(accepted: fixed, synced)"
        )
    if config.kl == "none" and update == "synced":
        raise ConfigError(
            "objective.reference.update='synced' with objective.kl='none': nothing would look at the reference "
            "(accepted: fixed, absent)"
        )
    if config.kl == "none" and config.kl_target:
        raise ConfigError(f"objective.kl_target={config.kl_target} with objective.kl='none': there is no coefficient")


def warn(config: ObjectiveConfig, steps: int) -> Iterator[str]:
    """Yields what works but is likely not what was meant.

    Args:
        steps: optimizer steps on each rollout.
    """
    widest = max(config.clip_low, config.clip_high)
    sequences = config.ratio != "token" and config.surrogate != "reinforce"
    if config.surrogate == "clip" and config.ratio == "seq_geo" and widest > _LARGEST_SEQUENCE_CLIP:
        yield (
            f"objective.clip_low={config.clip_low}, clip_high={config.clip_high} with objective.ratio='seq_geo': the "
            "geometric mean of a sequence's ratios stays so near 1 that this never clips; GSPO has 0.0003 and 0.0004"
        )
    if (
        config.ratio == "seq_geo"
        and sequences
        and config.aggregation not in ("seq_mean_token_mean", "seq_mean_token_sum")
    ):
        yield (
            f"objective.aggregation={config.aggregation!r} with objective.ratio='seq_geo' is not GSPO "
            "(seq_mean_token_mean) nor LUSPO (seq_mean_token_sum)"
        )
    whole = sequences and config.surrogate != "vespo"  # whose weight has no gradient
    if config.ratio == "seq_prod" and whole and config.aggregation != "seq_mean_token_sum":
        yield (
            f"objective.aggregation={config.aggregation!r} with objective.ratio='seq_prod': the gradient of a "
            "sequence's product is that of seq_mean_token_sum"
        )
    if config.surrogate == "gmpo" and config.aggregation != "seq_mean_token_mean":
        yield f"objective.aggregation={config.aggregation!r} is not GMPO, a mean over sequences (seq_mean_token_mean)"
    if steps == 1:
        return
    several = f"{steps} optimizer steps on each rollout (update.minibatches, update.epochs)"
    if config.surrogate == "reinforce" and not config.correction.compares():
        yield (
            f"objective.surrogate='reinforce' with {several}: all but the first are off policy, and nothing corrects "
            "for it"
        )
    if config.old == "current" and config.surrogate not in ("reinforce", "plain"):
        yield (
            f"objective.old='current' with {several}: the ratio is always 1, so that {config.surrogate!r} never "
            "bounds anything"
        )
