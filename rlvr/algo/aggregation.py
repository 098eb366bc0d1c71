"""How per-token losses become one loss: as a weight for each token, the loss being the plain weighted sum.

The weights are computed once for a whole optimizer step, so the denominators are global over shards and
micro-batches by construction, and splitting a step differently cannot change it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rlvr.masked import module_of


def token_mean(lengths: Any, groups: np.ndarray, constant: int) -> Any:
    """1 / (all tokens) (DAPO, 2503.14476)."""
    return _same(lengths, 1.0 / module_of(lengths).maximum(lengths.sum(), 1))


def token_sum(lengths: Any, groups: np.ndarray, constant: int) -> Any:
    """1: unnormalised."""
    return _same(lengths, 1.0)


def seq_mean_token_mean(lengths: Any, groups: np.ndarray, constant: int) -> Any:
    """1 / (sequences * own length) (GRPO, 2402.03300)."""
    return 1.0 / (_sequences(lengths) * module_of(lengths).maximum(lengths, 1))


def seq_mean_token_sum(lengths: Any, groups: np.ndarray, constant: int) -> Any:
    """1 / sequences (RLOO; LUSPO's coefficient on policy)."""
    return _same(lengths, 1.0 / _sequences(lengths))


def seq_sum_norm(lengths: Any, groups: np.ndarray, constant: int) -> Any:
    """1 / (sequences * constant), the constant being the generation budget (Dr. GRPO, 2503.20783)."""
    return _same(lengths, 1.0 / (_sequences(lengths) * constant))


def prompt_mean(lengths: Any, groups: np.ndarray, constant: int) -> Any:
    """1 / (prompts * tokens of the own group): a token mean in each group, then over groups (ScaleRL, 2510.13786)."""
    xp = module_of(lengths)
    names, index = np.unique(groups, return_inverse=True)
    totals = (index[None, :] == np.arange(len(names))[:, None]) @ lengths
    return 1.0 / (xp.maximum(xp.count_nonzero(totals), 1) * xp.maximum(totals, 1)[index])


# Each takes lengths [B] (sampled tokens of each sequence, of NumPy or JAX), groups [B] (of NumPy: who belongs together
# is always known) and the generation budget, and returns the weight [B] of each token of a sequence. Sequences of no
# tokens count nowhere.
AGGREGATIONS: dict[str, Callable[[Any, np.ndarray, int], Any]] = {
    "token_mean": token_mean,
    "token_sum": token_sum,
    "seq_mean_token_mean": seq_mean_token_mean,
    "seq_mean_token_sum": seq_mean_token_sum,
    "seq_sum_norm": seq_sum_norm,
    "prompt_mean": prompt_mean,
}


def weigh_right(lengths: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns 1 / (all tokens of the right sequences) for those, 0 for the others: [B].

    Args:
        lengths: [B].
        right: [B] bool.
    """
    return right / max(int(lengths[right].sum()), 1)


def _sequences(lengths: Any) -> Any:
    xp = module_of(lengths)
    return xp.maximum(xp.count_nonzero(lengths), 1)


def _same(lengths: Any, weight: Any) -> Any:
    return module_of(lengths).full(len(lengths), weight)
