"""Tokens that are chosen over a minibatch, under jit and on the host."""

import jax
import numpy as np
import pytest

from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.selection import SelectionConfig, select_high_covariance, select_high_entropy, select_small_moment
from rlvr.program.learning import choose_tokens


@pytest.mark.parametrize(
    ("selection", "surrogate"),
    [
        (SelectionConfig(top_entropy=0.2, covariance="kl_cov", share=0.15, second_moment=0.5), "clip"),
        (SelectionConfig(covariance="kl_cov", share=1e-3, second_moment=1e-9), "aspo"),
        (SelectionConfig(second_moment=100.0), "clip"),
    ],
)
def test_the_same_tokens_are_chosen_as_on_the_host(selection, surrogate):
    rng = np.random.default_rng(2)
    objective = ObjectiveConfig(surrogate=surrogate, selection=selection)
    lengths = rng.integers(1, 8, size=12)
    sampled = np.arange(8)[None] < lengths[:, None]
    now, rollout, advantages = (rng.normal(size=(12, 8)).astype(np.float32) for _ in range(3))
    entropies = np.abs(rng.normal(size=(12, 8))).astype(np.float32)
    found = jax.jit(lambda *arrays: choose_tokens(objective, *arrays))(now, entropies, rollout, advantages, sampled)

    def rows(x):
        return [own[:n] for own, n in zip(np.asarray(x), lengths, strict=True)]

    wanted = {}
    if surrogate == "aspo" or selection.top_entropy < 1:
        wanted["high_entropy"] = select_high_entropy(rows(entropies), objective)
    if selection.covariance == "kl_cov":
        given = (rows(x) for x in (now, rollout, advantages, rollout))
        wanted["high_covariance"] = select_high_covariance(*given, objective)
    wanted["small_moment"] = select_small_moment(rows(now), rows(rollout), objective)
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        assert [own.tolist() for own in rows(found[name])] == [own.tolist() for own in expected], name
        assert np.any(np.asarray(found[name])) and not np.any(np.asarray(found[name])[~sampled])
