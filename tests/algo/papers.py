"""The losses of the presets as their papers write them: loops over sequences in float64, gradients by differences.

Nothing here uses the project's code. A loss takes (now, at): the log-probs of the sequences' tokens, and the same at
the point where the gradient is taken, which everything without gradient (weights, masks) is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Sequences = Sequence[np.ndarray]
Loss = Callable[[Sequences, Sequences], float]
Token = Callable[[int, np.ndarray, np.ndarray], np.ndarray]

LENGTHS = (2, 5, 1, 4, 3, 6)
GROUPS = (0, 0, 0, 1, 1, 1)
RIGHT = (True, False, True, False, True, False)
A = np.array([1.5, -0.5, 0.25, -2.0, 0.75, -0.625])
B, N, BUDGET = len(LENGTHS), sum(LENGTHS), 9
_RNG = np.random.default_rng(173)


def _draw(scale: float, base: Sequences | None = None) -> list[np.ndarray]:
    """Numbers that float32 holds exactly."""
    noise = [_RNG.normal(0.0, scale, n) for n in LENGTHS]
    base = base or [np.zeros(n) for n in LENGTHS]
    return [np.asarray(b + x, np.float32).astype(np.float64) for b, x in zip(base, noise, strict=True)]


def _probable(logprobs: Sequences) -> list[np.ndarray]:
    """Mirrors what is above -1/32: none is the log of a probability of 1 or more, and no two are the same."""
    return [(-1 / 32 - np.abs(x + 1 / 32)).astype(np.float32).astype(np.float64) for x in logprobs]


NOW = _probable(_draw(0.9, [np.full(n, -1.5) for n in LENGTHS]))
OLD = _probable(_draw(0.45, NOW))  # at sampling
PROXIMAL = _probable(_draw(0.3, NOW))
REFERENCE = _draw(0.4, NOW)
ENTROPIES = [np.abs(x) for x in _draw(1.0)]


def gradient(loss: Loss, at: Sequences) -> list[np.ndarray]:
    """Central differences."""
    out = [np.zeros_like(x) for x in at]
    for i, row in enumerate(at):
        for t in range(len(row)):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [x.copy() for x in at]
                moved[i][t] += step
                ends.append(loss(moved, at))
            out[i][t] = (ends[0] - ends[1]) / 2e-6
    return out


# Aggregations of per-token losses.
def token_mean(loss: Token) -> Loss:
    return lambda now, at: sum(float(np.sum(loss(i, now[i], at[i]))) for i in range(B)) / N


def sequence_mean(loss: Token) -> Loss:
    return lambda now, at: sum(float(np.mean(loss(i, now[i], at[i]))) for i in range(B)) / B


def sequence_sum(loss: Token) -> Loss:
    return lambda now, at: sum(float(np.sum(loss(i, now[i], at[i]))) for i in range(B)) / B


def budgeted(loss: Token) -> Loss:
    return lambda now, at: sum(float(np.sum(loss(i, now[i], at[i]))) for i in range(B)) / (B * BUDGET)


def plus(*losses: Loss) -> Loss:
    return lambda now, at: sum(loss(now, at) for loss in losses)


# Surrogates.
def clip(low: float, high: float, old: Sequences = OLD) -> Token:
    def loss(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
        r = np.exp(x - old[i])
        return -np.minimum(r * A[i], np.clip(r, 1 - low, 1 + high) * A[i])

    return loss


def dual_clip(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    r = np.exp(x - OLD[i])
    pessimistic = np.maximum(-r * A[i], -np.clip(r, 0.8, 1.2) * A[i])
    return np.where(A[i] < 0, np.minimum(pessimistic, -3.0 * A[i]), pessimistic)


def two_sided(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    r = np.exp(x - OLD[i])
    return -np.minimum(np.minimum(r, 4.0) * A[i], np.clip(r, 0.8, 1.2) * A[i])


def reinforce(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    return -A[i] * x


def gspo(low: float, high: float) -> Token:
    def loss(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
        s = np.exp(np.sum(x - OLD[i]) / LENGTHS[i])
        return -np.minimum(s * A[i], np.clip(s, 1 - low, 1 + high) * A[i])

    return loss


def luspo(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    return LENGTHS[i] * gspo(2e-3, 2.5e-3)(i, x, at)


def cispo(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    return -np.minimum(np.exp(at - OLD[i]), 5.0) * A[i] * x


def gmpo(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    sign, log_r = np.sign(A[i]), x - OLD[i]
    bounded = sign * np.minimum(sign * log_r, sign * np.clip(log_r, -0.4, 0.4))
    return -np.exp(np.mean(bounded)) * A[i]


def sapo(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    t = 1.0 if A[i] > 0 else 1.05
    return -4 / t / (1 + np.exp(-t * (np.exp(x - OLD[i]) - 1))) * A[i]


def aspo(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    width = np.where(ENTROPIES[i] > np.quantile(np.concatenate(ENTROPIES), 0.8), 0.4, 0.2)
    r, fixed = np.exp(x - OLD[i]), np.exp(at - OLD[i])
    if A[i] > 0:
        loss = -A[i] * np.minimum(r, 1 + width) / np.minimum(fixed, 1 + width) ** 2
        return np.where(1 / fixed > 3, -A[i] * 3 * x, loss)
    return np.where(fixed > 3, -A[i] * 3 * x, -A[i] * np.maximum(r, 1 - width))


def dppo_tv(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    moved = np.exp(at) - np.exp(OLD[i])
    dropped = moved > 0.15 if A[i] > 0 else moved < -0.15
    return np.where(dropped, 0.0, -A[i] * np.minimum(np.exp(at - OLD[i]), 20.0) * x)


def dppo_kl(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    p, mu = np.exp(at), np.exp(OLD[i])
    kl = mu * np.log(mu / p) + (1 - mu) * np.log((1 - mu) / (1 - p))
    dropped = (kl > 0.05) & ((p > mu) if A[i] > 0 else (p < mu))
    return np.where(dropped, 0.0, -A[i] * np.minimum(np.exp(at - OLD[i]), 20.0) * x)


def kl_cov(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    log_r = x - OLD[i]
    return -A[i] * np.exp(log_r) + np.where(covariance(at, i) == LARGEST, np.abs(log_r), 0.0)


def covariance(at: np.ndarray, i: int) -> np.ndarray:
    mean = sum(LENGTHS[j] * A[j] for j in range(B)) / N
    return (A[i] - mean) * (at - np.mean(np.concatenate(NOW)))


LARGEST = max(float(np.max(covariance(NOW[i], i))) for i in range(B))


def clip_cov(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """All candidates, not a share of them."""
    r, c = np.exp(at - OLD[i]), covariance(at, i)
    clipped = (r > 1.2) if A[i] > 0 else (r < 0.8)
    return np.where((c > 0.25) & (c < 5) & ~clipped, 0.0, clip(0.2, 0.2)(i, x, at))


def top_entropy(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    kept = ENTROPIES[i] >= np.quantile(np.concatenate(ENTROPIES), 0.8)
    return np.where(kept, clip(0.2, 0.28)(i, x, at), 0.0)


def m2po(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    moments = sorted((v - o) ** 2 for v, o in zip(np.concatenate(NOW), np.concatenate(OLD), strict=True))
    kept = max([n for n in range(1, N + 1) if sum(moments[:n]) / n < 0.04], default=1)
    return np.where((at - OLD[i]) ** 2 <= moments[kept - 1], -A[i] * np.exp(x - OLD[i]), 0.0)


def vespo(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    w = np.exp(np.sum(at - OLD[i]))
    k, rate = (2, 3) if A[i] > 0 else (3, 2)
    return -np.exp(rate) * w**k * np.exp(-rate * w) * A[i] * x


def dro(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    return -(A[i] * x - 0.5 * (x - OLD[i]) ** 2)


def imitation(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    return -0.1 * RIGHT[i] * x * N / sum(n for n, right in zip(LENGTHS, RIGHT, strict=True) if right)


def k3(coef: float, weighted: bool = False) -> Token:
    def loss(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
        d = x - REFERENCE[i]
        return coef * (np.exp(-d) + d - 1) * (np.exp(x - OLD[i]) if weighted else 1.0)

    return loss


def corrected(weigh: Callable[[np.ndarray], np.ndarray]) -> Loss:
    """DAPO's clip against the proximal policy, times a weight made of w = proximal / rollout."""
    base = clip(0.2, 0.28, PROXIMAL)
    return token_mean(lambda i, x, at: weigh(np.exp(PROXIMAL[i] - OLD[i])) * base(i, x, at))


def seq_mask(w: np.ndarray) -> np.ndarray:
    mean = np.exp(np.mean(np.log(w)))
    return w * (SEQ_LOW <= mean <= SEQ_HIGH)


SEQ_LOW, SEQ_HIGH, SEQ_CAP = 0.8, 1.1, 2.0  # the presets' bounds would drop all of these, or none


def opsm(i: int, x: np.ndarray, at: np.ndarray) -> np.ndarray:
    kept = not (A[i] < 0 and np.mean(OLD[i] - at) > OPSM)
    return kept * clip(0.2, 0.2)(i, x, at)


OPSM = 0.1
_dapo = token_mean(clip(0.2, 0.28))
_plain = token_mean(clip(0.2, 0.2))

PAPERS: dict[str, Loss] = {
    "grpo": plus(sequence_mean(clip(0.2, 0.2)), sequence_mean(k3(0.04))),
    "dr_grpo": budgeted(clip(0.2, 0.2)),
    "dapo": _dapo,
    "gspo": sequence_mean(gspo(3e-4, 4e-4)),
    "gspo_token": sequence_mean(gspo(3e-4, 4e-4)),
    "luspo": sequence_mean(luspo),
    "cispo": token_mean(cispo),
    "gmpo": sequence_mean(gmpo),
    "sapo": sequence_mean(sapo),
    "aspo": token_mean(aspo),
    "dppo_tv": token_mean(dppo_tv),
    "dppo_kl": token_mean(dppo_kl),
    "rloo": sequence_sum(reinforce),
    "reinforce_pp": _plain,
    "reinforce_pp_baseline": _plain,
    "ppo": _plain,
    "vapo": plus(_dapo, token_mean(imitation)),
    "lite_ppo": _plain,
    "opo": token_mean(reinforce),
    "maxrl": _plain,
    "pass_at_k": _plain,
    "pkpo": _plain,
    "best_of_group": _plain,
    "gdpo": sequence_mean(clip(0.2, 0.2)),
    "reinforce": sequence_sum(reinforce),
    "dual_clip": token_mean(dual_clip),
    "two_sided_clip": plus(sequence_mean(two_sided), sequence_mean(k3(0.001))),
    "clip_cov": token_mean(clip_cov),
    "kl_cov": token_mean(kl_cov),
    "top_entropy": token_mean(top_entropy),
    "adaptive_entropy": _plain,
    "m2po": token_mean(m2po),
    "vespo": token_mean(vespo),
    "dro": token_mean(dro),
    "decoupled": corrected(lambda w: w),
    "tis": corrected(lambda w: np.minimum(w, 2.0)),
    "seq_tis": corrected(lambda w: np.minimum(np.prod(w), SEQ_CAP) * np.ones_like(w)),
    "mis": corrected(lambda w: w * (w <= 5.0)),
    "seq_mis": corrected(lambda w: np.prod(w) * (np.prod(w) <= 3.0) * np.ones_like(w)),
    "icepop": corrected(lambda w: w * ((w >= 0.5) & (w <= 5.0))),
    "seq_mask_tis": corrected(seq_mask),
    "opsm": plus(sequence_mean(opsm), sequence_mean(k3(0.001, weighted=True))),
}
