"""The rollout that a step of the RL learns from: its own, or (`rollout.staleness`) one sampled in the step before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rlvr import keys
from rlvr.config import ExperimentConfig
from rlvr.data.pipeline import TaskStream
from rlvr.policy.transformer import Params
from rlvr.rollout.collect import Collector, Sampled, pack_completions
from rlvr.types import Task


class Rollouts:
    """Samples the rollouts of the RL in turn.

    What was sampled and not yet learned from is part of a checkpoint, as it was sampled: a resumed run verifies it
    anew and goes on exactly.
    """

    def __init__(self, config: ExperimentConfig, collector: Collector, stream: TaskStream):
        self._config, self._collector, self._stream = config, collector, stream
        self._next: Sampled | None = None

    def take(self, rl_step: int, params: Params, **hooks: Callable[..., Any]) -> tuple[Sampled, int]:
        """Returns (the rollout of an RL step, the updates by which its parameters are behind).

        Args:
            params: of the policy now.
            hooks: `on_dispatch` and `should_stop` of `Collector.sample`; when that raises, nothing sampled is lost.
        """
        staleness = self._config.rollout.staleness
        if self._next is None:
            self._next = self._sample(rl_step, params, **hooks)
        rollout = self._next
        more = staleness and rl_step + 1 < self._config.steps
        self._next = self._sample(rl_step + 1, params, **hooks) if more else None
        return rollout, staleness if rl_step else 0

    def pending(self) -> tuple[dict[str, np.ndarray] | None, Mapping[str, Any]]:
        """Returns what a checkpoint holds of the next rollout, where there is one: its arrays, and its facts."""
        return (None, {}) if self._next is None else (pack_completions(self._next.completions), self._next.facts)

    def resume(self, rl_step: int, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Takes up the rollout of an RL step that was pending."""
        samples = self._config.rollout.group_size
        self._next = self._collector.resume(self._tasks(rl_step), samples, arrays, facts)

    def _sample(self, rl_step: int, params: Params, **hooks: Any) -> Sampled:
        rollout = self._config.rollout
        key = keys.make_key(self._config.seed, "rollout", rl_step)
        options = rollout.sampling() | hooks
        return self._collector.sample(params, self._tasks(rl_step), key, samples=rollout.group_size, **options)

    def _tasks(self, rl_step: int) -> list[Task]:
        warm, prompts = self._config.warm_start, self._config.rollout.prompts
        return self._stream.batch(warm.steps * warm.rows + rl_step * prompts, prompts)
