"""The rollout that a step of the RL learns from: its own, or (`rollout.staleness`) one sampled in the step before.

With `rollout.dynamic_rounds` it is filled up with further prompts until it has enough to learn from.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rlvr import evaluation, keys
from rlvr.algo.filters import KINDS, sort_groups
from rlvr.algo.rewards import find_valid
from rlvr.config import ExperimentConfig
from rlvr.data.pipeline import TaskStream
from rlvr.policy.transformer import Params
from rlvr.rollout.collect import Collected, Collector, Episode, Sampled, pack_completions
from rlvr.rollout.config import EngineStats
from rlvr.types import Task

log = logging.getLogger("rlvr")

Hooks = Mapping[str, Callable[..., Any]]


class Ahead(NamedTuple):
    """A rollout that was sampled and not yet learned from, and the tasks of it: `prompts` from `position` on."""

    sampled: Sampled
    position: int
    prompts: int


class Rollouts:
    """Samples the rollouts of the RL in turn.

    How far the tasks have been drawn, and what was sampled and not yet learned from, is part of a checkpoint: a resumed
    run verifies the latter anew and goes on exactly.
    """

    def __init__(self, config: ExperimentConfig, collector: Collector, stream: TaskStream):
        self._config, self._collector, self._stream = config, collector, stream
        self._position = config.warm_start.steps * config.warm_start.rows
        self._next: Ahead | None = None

    def take(
        self, rl_step: int, params: Params, end: Callable[[str], None], **hooks: Callable[..., Any]
    ) -> tuple[Collected, dict[str, float]]:
        """Returns (what an RL step learns from, metrics of how it was sampled).

        Args:
            params: of the policy now.
            end: called with "rollout" or "verify_wait" when the seconds since its last call were spent on that.
            hooks: `on_dispatch` and `should_stop` of `Collector.sample`; when that raises, nothing sampled is lost but
                the rounds of one step.
        """
        if self._config.rollout.dynamic_rounds:
            return self._fill(rl_step, params, end, hooks)
        staleness = self._config.rollout.staleness
        if self._next is None:
            self._next = self._sample_next(rl_step, params, hooks)
        rollout = self._next.sampled
        more = staleness and rl_step + 1 < self._config.steps
        self._next = self._sample_next(rl_step + 1, params, hooks) if more else None
        end("rollout")
        collected = rollout.verify()
        end("verify_wait")
        return collected, {"rollout/staleness": staleness if rl_step else 0}

    def pending(self) -> tuple[dict[str, np.ndarray] | None, dict[str, Any]]:
        """Returns what a checkpoint holds: arrays of the next rollout, if it was sampled, and JSON values."""
        if self._next is None:
            return None, {"position": self._position}
        sampled, *drawn = self._next
        arrays = pack_completions(sampled.completions)
        return arrays, {"position": self._position, "drawn": drawn, "sampled": sampled.facts}

    def resume(self, arrays: Mapping[str, np.ndarray] | None, facts: Mapping[str, Any]) -> None:
        """Takes up where `pending` was called."""
        self._position = facts["position"]
        if arrays is not None:
            drawn = facts["drawn"]
            samples = self._config.rollout.group_size
            sampled = self._collector.resume(self._stream.batch(*drawn), samples, arrays, facts["sampled"])
            self._next = Ahead(sampled, *drawn)

    def _sample_next(self, rl_step: int, params: Params, hooks: Hooks) -> Ahead:
        drawn = self._position, self._config.rollout.prompts
        sampled = self._sample(self._stream.batch(*drawn), params, hooks, rl_step)
        self._position += self._config.rollout.prompts
        return Ahead(sampled, *drawn)

    def _sample(self, tasks: list[Task], params: Params, hooks: Hooks, *counters: int) -> Sampled:
        rollout = self._config.rollout
        key = keys.make_key(self._config.seed, "rollout", *counters)
        return self._collector.sample(params, tasks, key, samples=rollout.group_size, **rollout.sampling(), **hooks)

    def _fill(
        self, rl_step: int, params: Params, end: Callable[[str], None], hooks: Hooks
    ) -> tuple[Collected, dict[str, float]]:
        """Samples in rounds until enough groups are mixed; they are taken in the order in which they were drawn."""
        rollout, position = self._config.rollout, self._position
        counts = dict.fromkeys(KINDS, 0)
        rounds: list[Collected] = []
        kept: list[list[Episode]] = []
        while len(rounds) < rollout.dynamic_rounds and len(kept) < rollout.prompts:
            wanted = math.ceil((rollout.prompts - len(kept)) * rollout.oversample)
            counters = (rl_step, len(rounds)) if rounds else (rl_step,)  # a prompt may come again in a later round
            sampled = self._sample(self._stream.batch(position, wanted), params, hooks, *counters)
            end("rollout")
            rounds.append(sampled.verify())
            end("verify_wait")
            position += wanted
            for group, kind in self._sort(rounds[-1].episodes):
                counts[kind] += 1
                if kind == "mixed":
                    kept.append(group)
        self._position = position
        used = kept[: rollout.prompts]
        if len(used) < rollout.prompts:
            told = "the update learns nothing" if not used else f"the update learns from {len(used)}"
            log.warning(
                "RL step %d: %d of %d groups have both right and wrong samples after %d rounds: %s",
                rl_step, len(used), rollout.prompts, len(rounds), told,
            )  # fmt: skip
        # Without any, one group stands for the step, which has its metrics then: its advantages are those of equals.
        episodes = [e for group in used or [rounds[0].episodes[: rollout.group_size]] for e in group]
        return _join(rounds, episodes), _describe(rounds, counts, used)

    def _sort(self, episodes: list[Episode]) -> list[tuple[list[Episode], str]]:
        """Returns each group with its kind."""
        size = self._config.rollout.group_size
        right = evaluation.correct(episodes)[0] == 1.0
        valid = find_valid([e.verdict for e in episodes], self._config.reward)
        kinds = sort_groups(right.reshape(-1, size), valid.reshape(-1, size))
        return [(episodes[i * size : (i + 1) * size], kind) for i, kind in enumerate(kinds)]


def _join(rounds: list[Collected], episodes: list[Episode]) -> Collected:
    """Returns the chosen episodes with what all rounds cost."""
    decode, waits = sum(r.decode_s for r in rounds), sum(r.verify_wait_s for r in rounds)
    return Collected(episodes, decode, waits, sum((r.engine for r in rounds), EngineStats()))


def _describe(rounds: list[Collected], counts: Mapping[str, int], used: list[list[Episode]]) -> dict[str, float]:
    everything = [e for r in rounds for e in r.episodes]
    strict = evaluation.correct(everything)[0]
    sampled = sum(len(e.completion.tokens) for e in everything)
    learned = sum(len(e.completion.tokens) for group in used for e in group)
    metrics = {
        "rollout/staleness": 0,
        "dynamic/rounds": len(rounds),
        "dynamic/prompts": sum(counts.values()),
        "dynamic/groups": len(used),
        "dynamic/surplus": counts["mixed"] - len(used),
        **{f"dynamic/{kind}": count for kind, count in counts.items() if kind != "mixed"},
        "dynamic/tokens_dropped": sampled - learned,
        "dynamic/accuracy": float(np.nanmean(strict)) if np.isfinite(strict).any() else np.nan,
    }
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}
