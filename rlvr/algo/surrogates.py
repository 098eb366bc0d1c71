"""Per-token policy losses: what takes the place of -A log policy where samples are used more than once.

Each surrogate takes (logprobs [R, C] with gradient, the fields of those tokens, the objective) and returns (loss
[R, C], indicators [R, C] to be averaged over tokens, such as where a clipped branch is the active one). The fields:

    old         log-probs that the ratio r = policy / old is taken against
    rollout     log-probs recorded at sampling
    advantages  A
    sequence    of a sequence's whole log-ratio, the same for all its tokens; only where `needs_sequence` says so
    high_entropy    whether a token's entropy is above the quantile; only where asked for (`rlvr.algo.selection`)

A ratio of sequences is written as sg[s] policy / sg[policy] (GSPO-token, 2507.18071, section 4.3): its value is s, and
the gradient of a token s grad log policy, so that the exact gradient of a sequence's loss is one of its tokens' mean
(`seq_mean_token_mean`: GSPO) or sum (`seq_mean_token_sum`: LUSPO, 2602.05261).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from rlvr.algo.kl import LOG_RATIO_LIMIT

if TYPE_CHECKING:
    from rlvr.algo.objectives import ObjectiveConfig

Fields = dict[str, Any]
Losses = tuple[jax.Array, dict[str, jax.Array]]
Surrogate = Callable[[jax.Array, Fields, "ObjectiveConfig"], Losses]

# Of a sequence's log-ratio, from above: as verl and tunix have it.
SEQUENCE_LIMIT = 10.0
VESPO_LIMITS = (math.log(1e-8), 20.0)
_sg = jax.lax.stop_gradient


def clip(logprobs: jax.Array, fields: Fields, config: ObjectiveConfig) -> Losses:
    """-min(r A, clip(r, 1 - low, 1 + high) A) (PPO, 1707.06347), r of tokens or sequences.

    Where A < 0 the loss has no upper bound in r; `dual_clip` c > 1 bounds it by -c A (1912.09729), `ratio_cap` d by
    taking min(r, d) in the first branch (INTELLECT-2, 2505.07291).
    """
    advantages = fields["advantages"]
    ratio = jnp.exp(log_ratio(logprobs, fields, config))
    free = (jnp.minimum(ratio, config.ratio_cap) if config.ratio_cap else ratio) * advantages
    clipped = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high) * advantages
    active = clipped < free
    gain = jnp.minimum(free, clipped)
    indicators = {"clip/high": active & (advantages > 0), "clip/low": active & (advantages < 0)}
    bound = min(x for x in (config.dual_clip, config.ratio_cap, float("inf")) if x)
    if bound < float("inf"):
        indicators["clip/dual"] = (advantages < 0) & (ratio > bound)
    if config.dual_clip:
        gain = jnp.where(advantages < 0, jnp.maximum(gain, config.dual_clip * advantages), gain)
    return -gain, indicators


def plain(logprobs: jax.Array, fields: Fields, config: ObjectiveConfig) -> Losses:
    """-r A, without a bound."""
    return -jnp.exp(log_ratio(logprobs, fields, config)) * fields["advantages"], {}


def reinforce(logprobs: jax.Array, fields: Fields, config: ObjectiveConfig) -> Losses:
    """-A log policy (Williams, 1992); with advantages of one it is supervised learning."""
    return -fields["advantages"] * logprobs, {}


def cispo(logprobs: jax.Array, fields: Fields, config: ObjectiveConfig) -> Losses:
    """-sg[min(r, max_weight)] A log policy (MiniMax-M1, 2506.13585): every token keeps a gradient."""
    ratio = jnp.exp(_sg(log_ratio(logprobs, fields, config)))
    weight = jnp.minimum(ratio, config.max_weight)
    return -weight * fields["advantages"] * logprobs, {"clip/weight": ratio > config.max_weight}


def sapo(logprobs: jax.Array, fields: Fields, config: ObjectiveConfig) -> Losses:
    """-(4 / t) sigmoid(t (r - 1)) A with t = sapo_positive where A > 0, else sapo_negative (SAPO, 2511.20347).

    The slope at r = 1 is 1, whatever t; the value there is 2 / t, so losses do not compare with those of others.
    """
    advantages = fields["advantages"]
    ratio = jnp.exp(log_ratio(logprobs, fields, config))
    t = jnp.where(advantages > 0, config.sapo_positive, config.sapo_negative).astype(ratio.dtype)
    return -4.0 / t * jax.nn.sigmoid(t * (ratio - 1.0)) * advantages, {}


def gmpo(logprobs: jax.Array, fields: Fields, config: ObjectiveConfig) -> Losses:
    """-A exp(mean over the sequence of log r clipped to [-clip_low, clip_high]) (GMPO, 2507.20673).

    The clip is one-sided: from above where A > 0, from below where A < 0. `fields["sequence"]` is the mean.
    """
    bounded = bound_log_ratio(log_ratio(logprobs, fields, config), fields["advantages"], config)
    raw = logprobs - fields["old"]
    indicators = {
        "clip/high": (raw > config.clip_high) & (fields["advantages"] > 0),
        "clip/low": (raw < -config.clip_low) & (fields["advantages"] < 0),
    }
    return -fields["advantages"] * jnp.exp(fields["sequence"] + bounded - _sg(bounded)), indicators


def bound_log_ratio(log_r: jax.Array, advantages: jax.Array, config: ObjectiveConfig) -> jax.Array:
    """Returns GMPO's log-ratio of a token: min(log r, clip_high) where A > 0, max(log r, -clip_low) where A < 0."""
    return jnp.where(advantages > 0, jnp.minimum(log_r, config.clip_high), jnp.maximum(log_r, -config.clip_low))


def aspo(logprobs: jax.Array, fields: Fields, config: ObjectiveConfig) -> Losses:
    """Where A > 0 the weight of a token is 1 / r instead of r: unlikely ones learn most (ASPO, 2510.06062).

    A < 0: -A max(r, 1 - low). A > 0: -A q / sg[q]^2 with q = min(r, 1 + high). Either weight above `max_weight` becomes
    that constant (times log policy, so that the gradient stays). Tokens above the entropy quantile have
    `selection.high_entropy_clip` for low and high.
    """
    advantages, wide = fields["advantages"], config.selection.high_entropy_clip
    low, high = (
        jnp.where(fields["high_entropy"], wide, x).astype(logprobs.dtype) for x in (config.clip_low, config.clip_high)
    )
    ratio = jnp.exp(log_ratio(logprobs, fields, config))
    bounded = jnp.minimum(ratio, 1.0 + high)
    up, down = bounded / _sg(bounded) ** 2, jnp.maximum(ratio, 1.0 - low)
    positive = advantages > 0
    gain = jnp.where(positive, up, down)
    weight = _sg(jnp.where(positive, 1.0 / ratio, ratio))
    capped = weight > config.max_weight
    gain = jnp.where(capped, config.max_weight * logprobs, gain)
    indicators = {
        "clip/high": positive & (ratio > 1.0 + high),
        "clip/low": (advantages < 0) & (ratio < 1.0 - low),
        "clip/weight": capped & (advantages != 0),
    }
    return -advantages * gain, indicators


def dppo_tv(logprobs: jax.Array, fields: Fields, config: ObjectiveConfig) -> Losses:
    """-A sg[min(r, max_weight)] log policy, but nothing for tokens whose probability has moved the way A pushes it by
    more than `divergence` from that at sampling (DPPO, 2602.04879)."""
    moved = jnp.exp(_sg(logprobs)) - jnp.exp(fields["rollout"])
    return _within(logprobs, fields, config, jnp.abs(moved) > config.divergence, moved)


def dppo_kl(logprobs: jax.Array, fields: Fields, config: ObjectiveConfig) -> Losses:
    """Like `dppo_tv`, by KL(rollout || policy) of "this token or another" instead of the difference."""
    now, then = _sg(logprobs), fields["rollout"]
    p = jnp.exp(then)
    kl = p * (then - now) + (1.0 - p) * (_log_other(then) - _log_other(now))
    return _within(logprobs, fields, config, kl > config.divergence, now - then)


def vespo(logprobs: jax.Array, fields: Fields, config: ObjectiveConfig) -> Losses:
    """-sg[phi(W)] A log policy with phi(W) = W^k exp(l (1 - W)), W the product of a sequence's ratios (2602.10693).

    phi(1) = 1. (k, l) is `vespo_positive` where A >= 0, else `vespo_negative`; log W is bounded to [log 1e-8, 20].
    """
    advantages = fields["advantages"]
    log_w = jnp.clip(_sg(fields["sequence"]), *VESPO_LIMITS)
    k, rate = (
        jnp.where(advantages >= 0, *pair).astype(logprobs.dtype)
        for pair in zip(config.vespo_positive, config.vespo_negative, strict=True)
    )
    return -jnp.exp(k * log_w - rate * jnp.expm1(log_w)) * advantages * logprobs, {}


def dro(logprobs: jax.Array, fields: Fields, config: ObjectiveConfig) -> Losses:
    """-A log policy + (dro_beta / 2) (log r)^2 (DRO, 2405.19107)."""
    log_r = log_ratio(logprobs, fields, config)
    return 0.5 * config.dro_beta * log_r**2 - fields["advantages"] * logprobs, {}


def _within(logprobs: jax.Array, fields: Fields, config: ObjectiveConfig, far: jax.Array, moved: jax.Array) -> Losses:
    advantages = fields["advantages"]
    dropped = far & (((advantages > 0) & (moved > 0)) | ((advantages <= 0) & (moved < 0)))
    weight = jnp.minimum(jnp.exp(_sg(log_ratio(logprobs, fields, config))), config.max_weight)
    return -jnp.where(dropped, 0.0, weight) * advantages * logprobs, {"clip/divergence": dropped}


def _log_other(logprob: jax.Array) -> jax.Array:
    """log(1 - p), finite where p rounds to 1."""
    return jnp.log(-jnp.expm1(jnp.minimum(logprob, -1e-7)))


SURROGATES: dict[str, Surrogate] = {
    "clip": clip,
    "plain": plain,
    "reinforce": reinforce,
    "cispo": cispo,
    "sapo": sapo,
    "gmpo": gmpo,
    "aspo": aspo,
    "dppo_tv": dppo_tv,
    "dppo_kl": dppo_kl,
    "vespo": vespo,
    "dro": dro,
}

RATIOS = ("token", "seq_geo", "seq_prod")


def needs_sequence(config: ObjectiveConfig) -> bool:
    """Whether the surrogate looks at a sequence's ratio as a whole (`fields["sequence"]`)."""
    return config.surrogate == "gmpo" or (config.ratio != "token" and config.surrogate != "reinforce")


def log_ratio(logprobs: jax.Array, fields: Fields, config: ObjectiveConfig) -> jax.Array:
    """Returns log r of each token, or of its sequence, bounded so that r is finite."""
    if config.ratio == "token":
        return jnp.clip(logprobs - fields["old"], -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    level = jnp.clip(fields["sequence"], -LOG_RATIO_LIMIT, SEQUENCE_LIMIT)
    return level + logprobs - _sg(logprobs)
