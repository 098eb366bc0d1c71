"""The rollout that a step of the RL learns from: its own, or (`rollout.staleness`) one sampled in the step before.

With `rollout.dynamic_rounds` it is filled up with further prompts until it has enough to learn from.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlvr import keys
from rlvr.algo import multitask
from rlvr.algo.filters import KINDS
from rlvr.config import ExperimentConfig
from rlvr.curriculum import Curriculum, Group, Pick
from rlvr.evaluation import correct
from rlvr.policy.transformer import Params
from rlvr.rollout.collect import Collected, Collector, Sampled, pack_completions
from rlvr.rollout.config import EngineStats

log = logging.getLogger("rlvr")

Hooks = Mapping[str, Callable[..., Any]]


class Ahead(NamedTuple):
    """A rollout that was sampled and not yet learned from, where its prompts came from, and with what probabilities."""

    sampled: Sampled
    picks: Sequence[Pick]
    drawn: Sequence[float]


class Rollouts:
    """Samples the rollouts of the RL in turn.

    The state of the curriculum, and what was sampled and not yet learned from, is part of a checkpoint: a resumed run
    verifies the latter anew and goes on exactly.
    """

    def __init__(self, config: ExperimentConfig, collector: Collector, curriculum: Curriculum):
        self._config, self._collector, self._curriculum = config, collector, curriculum
        self._state: dict[str, Any] = curriculum.start()
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
        sampled, picks, drawn = self._next
        more = staleness and rl_step + 1 < self._config.steps
        self._next = self._sample_next(rl_step + 1, params, hooks) if more else None
        end("rollout")
        collected = sampled.verify()
        end("verify_wait")
        groups = self._curriculum.group(picks, collected.episodes)
        self._state = self._curriculum.observe(self._state, groups, drawn)
        told = self._curriculum.describe(self._state, groups, groups, drawn)
        return collected, {"rollout/staleness": staleness if rl_step else 0, **told}

    def pending(self) -> tuple[dict[str, np.ndarray] | None, dict[str, Any]]:
        """Returns what a checkpoint holds: arrays of the next rollout, if it was sampled, and JSON values."""
        if self._next is None:
            return None, {"state": self._state}
        sampled, picks, drawn = self._next
        facts = {"state": self._state, "picks": picks, "drawn": drawn, "sampled": sampled.facts}
        return pack_completions(sampled.completions), facts

    def resume(self, arrays: Mapping[str, np.ndarray] | None, facts: Mapping[str, Any]) -> None:
        """Takes up where `pending` was called."""
        self._state = facts["state"]
        if arrays is not None:
            picks, samples = [tuple(pick) for pick in facts["picks"]], self._config.rollout.group_size
            tasks, hinted = self._curriculum.tasks(picks), self._config.distill.samples_teacher()
            sampled = self._collector.resume(tasks, samples, arrays, facts["sampled"], hinted=hinted)
            self._next = Ahead(sampled, picks, facts["drawn"])

    def _sample_next(self, rl_step: int, params: Params, hooks: Hooks) -> Ahead:
        drawn = self._curriculum.probabilities(self._state)
        picks, state = self._curriculum.draw(self._state, self._config.rollout.prompts, rl_step)
        sampled = self._sample(picks, params, hooks, rl_step)
        self._state = state
        return Ahead(sampled, picks, drawn)

    def _sample(self, picks: Sequence[Pick], params: Params, hooks: Hooks, *counters: int) -> Sampled:
        rollout = self._config.rollout
        key = keys.make_key(self._config.seed, "rollout", *counters)
        hinted = self._config.distill.samples_teacher()
        options = {"samples": rollout.group_size, "hinted": hinted, **rollout.sampling(), **hooks}
        return self._collector.sample(params, self._curriculum.tasks(picks), key, **options)

    def _fill(
        self, rl_step: int, params: Params, end: Callable[[str], None], hooks: Hooks
    ) -> tuple[Collected, dict[str, float]]:
        """Samples in rounds until enough groups are mixed; they are taken in the order in which they were drawn."""
        rollout, own, state = self._config.rollout, self._curriculum, self._state
        drawn = own.probabilities(state)
        quota = own.draw_quota(state, rollout.prompts, rl_step) if self._config.curriculum.keep_shares else None
        rounds: list[Collected] = []
        groups: list[Group] = []
        chosen: list[int] = []
        while len(rounds) < rollout.dynamic_rounds and len(chosen) < rollout.prompts:
            if quota is None:
                number = math.ceil((rollout.prompts - len(chosen)) * rollout.oversample)
                picks, state = own.draw(state, number, rl_step, len(rounds), [g.pick for g in groups])
            else:
                missing = np.array(quota) - np.bincount([groups[i].pick[0] for i in chosen], minlength=len(quota))
                counts = multitask.plan_round(missing, own.flat_rates(self._state), rollout.oversample)
                picks, state = own.draw_arms(state, counts)
            if not picks:
                break
            counters = (rl_step, len(rounds)) if rounds else (rl_step,)  # a prompt may come again in a later round
            sampled = self._sample(picks, params, hooks, *counters)
            end("rollout")
            rounds.append(sampled.verify())
            end("verify_wait")
            groups += own.group(picks, rounds[-1].episodes)
            chosen = multitask.select([g.pick[0] for g in groups], _mixed(groups), quota, rollout.prompts)
        used = [groups[i] for i in multitask.fill(chosen, _mixed(groups), rollout.prompts)]
        self._state = own.observe(state, groups, drawn)
        if len(used) < rollout.prompts:
            told = f"the update learns from {len(used)}" if used else "the update has one that is all alike"
            log.warning(
                "RL step %d: %d of %d groups have both right and wrong samples after %d rounds: %s",
                rl_step, len(used), rollout.prompts, len(rounds), told,
            )  # fmt: skip
        metrics = {"rollout/staleness": 0.0, **own.describe(self._state, groups, used, drawn)}
        # Without any, the first group stands for the step, so that it has metrics: of correctness it teaches nothing.
        return _join(rounds, used or groups[:1]), metrics | _describe(len(rounds), groups, used)


def _mixed(groups: Sequence[Group]) -> list[bool]:
    return [group.kind == "mixed" for group in groups]


def _join(rounds: Sequence[Collected], used: Sequence[Group]) -> Collected:
    """Returns the episodes that are learned from, with what all rounds cost."""
    decode, waits = sum(r.decode_s for r in rounds), sum(r.verify_wait_s for r in rounds)
    episodes = [episode for group in used for episode in group.episodes]
    return Collected(episodes, decode, waits, sum((r.engine for r in rounds), EngineStats()))


def _describe(rounds: int, groups: Sequence[Group], used: Sequence[Group]) -> dict[str, float]:
    kinds = Counter(group.kind for group in groups)
    strict = correct([e for group in groups for e in group.episodes])[0]
    sampled, learned = ([len(e.completion.tokens) for g in some for e in g.episodes] for some in (groups, used))
    known = {"dynamic/accuracy": float(np.nanmean(strict))} if np.isfinite(strict).any() else {}
    return known | {
        "dynamic/rounds": rounds,
        "dynamic/prompts": len(groups),
        "dynamic/groups": len(used),
        "dynamic/surplus": kinds["mixed"] - len(used),
        **{f"dynamic/{kind}": kinds[kind] for kind in KINDS if kind != "mixed"},
        "dynamic/tokens_dropped": sum(sampled) - sum(learned),
    }
