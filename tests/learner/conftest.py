"""Rows to learn from, and an optimizer whose update shows the gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from rlvr.learner.batch import Row
from rlvr.learner.optimizer import OptimizerConfig

# With b1 = b2 = 0 and epsilon far over any gradient, AdamW moves a parameter by -learning_rate * g / (|g| + epsilon):
# plain descent, up to the factor below. Adam itself would make steps of full size out of rounding errors.
EPSILON = 100.0
DESCENT = OptimizerConfig(learning_rate=EPSILON, b1=0.0, b2=0.0, epsilon=EPSILON, max_grad_norm=1e9, max_skips=2)


@pytest.fixture(scope="session")
def descent() -> OptimizerConfig:
    """An optimizer that moves every parameter by minus its gradient, to within |gradient| / 100 of it."""
    return DESCENT


@pytest.fixture(scope="session")
def copied() -> Callable[[Any], Any]:
    """Returns a copy of a tree: an update consumes the state it is given."""
    return lambda tree: jax.tree.map(lambda x: x.copy(), tree)


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., list[Row]]:
    """Returns n rows of two groups: prompts of 1 to 6 ids, completions of 1 to 8, advantages of both signs.

    Prompts are all different, or (shared) one for each group.
    """

    def make(n: int = 8, zeros: Sequence[int] = (), vocab: int = 97, shared: bool = False) -> list[Row]:
        rng = np.random.default_rng(n)
        rows: list[Row] = []
        for i in range(n):
            completion = rng.integers(0, vocab, size=1 + (3 * i) % 8).astype(np.int32)
            prompt = tuple(rng.integers(0, vocab, size=1 + (5 * i) % 6).tolist())
            rows.append(
                Row(
                    prompt=rows[i - 2].prompt if shared and i >= 2 else prompt,
                    completion=completion,
                    old_logprobs=rng.normal(-5.0, 1.0, size=len(completion)).astype(np.float32),
                    advantage=0.0 if i in zeros else float(rng.normal()),
                    group=i % 2,
                )
            )
        return rows

    return make
