"""The policy that a run's own is compared with: that at the start of the RL, or one that follows the run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from rlvr import checkpoint
from rlvr.algo.kl import ReferenceConfig
from rlvr.learner.batch import Row
from rlvr.learner.learner import Learner
from rlvr.policy.transformer import Params


class Reference:
    """Parameters like the trained ones; loaded when they are first asked for.

    Args:
        config: what becomes of them.
        learner: of the RL.
        start: folder of the trained parameters at the start of the RL.
        name: under which a checkpoint holds them.
    """

    def __init__(self, config: ReferenceConfig, learner: Learner, start: Path, name: str = "reference"):
        self.start, self._config, self._learner, self._name = start, config, learner, name
        self._params: Params | None = None
        self._moved = False

    @property
    def metric(self) -> str:
        """The name under which the KL to it is reported."""
        return "kl/reference" if self._config.update == "synced" else "kl/start"

    def score(self, rows: Sequence[Row]) -> list[np.ndarray] | None:
        """Returns the log-probs of each row's completion; None if there is no reference."""
        return None if self._config.update == "absent" else self._learner.score(self.load(), rows)

    def follow(self, params: Params, rl_step: int) -> None:
        """Takes up the policy after an RL step, where an update is due."""
        if self._config.update != "synced" or (rl_step + 1) % self._config.interval:
            return
        self._params, self._moved = self._mix(self.load(), params), True

    @functools.cached_property
    def _mix(self) -> Callable[[Params, Params], Params]:
        alpha, shardings = self._config.alpha, jax.tree.map(lambda s: s.sharding, self._learner.abstract().params)

        def mix(reference: Params, policy: Params) -> Params:
            return jax.tree.map(lambda r, p: alpha * p + (1.0 - alpha) * r, reference, policy)

        return jax.jit(mix, donate_argnums=0, out_shardings=shardings)

    def moved(self) -> dict[str, Params]:
        """Returns what a checkpoint must hold: the parameters, once they are no longer those of the start."""
        return {self._name: self._params} if self._moved and self._params is not None else {}

    def resume(self, copies: Mapping[str, Params]) -> None:
        """Takes up what `moved` returned."""
        self._params, self._moved = copies.get(self._name), self._name in copies

    def load(self) -> Params:
        """Returns the parameters."""
        if self._params is None:
            self._params = checkpoint.load_tree(self.start, self._learner.abstract().params)
        return self._params
