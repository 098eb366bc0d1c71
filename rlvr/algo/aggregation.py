"""How per-token losses become one loss: as a weight for each token, the loss being the plain weighted sum.

The weights are computed once for a whole optimizer step, so the denominators are global over shards and
micro-batches by construction, and splitting a step differently cannot change it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def token_mean(lengths: np.ndarray, groups: np.ndarray, constant: int) -> np.ndarray:
    """1 / (all tokens) (DAPO, 2503.14476)."""
    return np.full(len(lengths), 1.0 / max(lengths.sum(), 1))


def token_sum(lengths: np.ndarray, groups: np.ndarray, constant: int) -> np.ndarray:
    """1: unnormalised."""
    return np.ones(len(lengths))


def seq_mean_token_mean(lengths: np.ndarray, groups: np.ndarray, constant: int) -> np.ndarray:
    """1 / (sequences * own length) (GRPO, 2402.03300)."""
    return 1.0 / (_sequences(lengths) * np.maximum(lengths, 1))


def seq_mean_token_sum(lengths: np.ndarray, groups: np.ndarray, constant: int) -> np.ndarray:
    """1 / sequences (RLOO; LUSPO's coefficient on policy)."""
    return np.full(len(lengths), 1.0 / _sequences(lengths))


def seq_sum_norm(lengths: np.ndarray, groups: np.ndarray, constant: int) -> np.ndarray:
    """1 / (sequences * constant), the constant being the generation budget (Dr. GRPO, 2503.20783)."""
    return np.full(len(lengths), 1.0 / (_sequences(lengths) * constant))


def prompt_mean(lengths: np.ndarray, groups: np.ndarray, constant: int) -> np.ndarray:
    """1 / (prompts * tokens of the own group): a token mean in each group, then over groups (ScaleRL, 2510.13786)."""
    names, index = np.unique(groups, return_inverse=True)
    totals = np.bincount(index, weights=lengths, minlength=len(names))
    return 1.0 / (max(np.count_nonzero(totals), 1) * np.maximum(totals, 1)[index])


# Each takes lengths [B] (sampled tokens of each sequence), groups [B] and the generation budget, and returns the
# weight [B] of each token of a sequence. Sequences of no tokens count nowhere.
AGGREGATIONS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "token_mean": token_mean,
    "token_sum": token_sum,
    "seq_mean_token_mean": seq_mean_token_mean,
    "seq_mean_token_sum": seq_mean_token_sum,
    "seq_sum_norm": seq_sum_norm,
    "prompt_mean": prompt_mean,
}


def _sequences(lengths: np.ndarray) -> int:
    return max(int(np.count_nonzero(lengths)), 1)
