"""Which tasks come next: arms of tasks in their own order, what is known of each, and what is open.

The state is JSON values: it is part of a run's record, and everything here is a function of it and of counters. Task i
of an arm is the same whenever it is drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlvr import errors, keys
from rlvr.algo import curriculum, stages
from rlvr.algo.advantages import SPREAD_TOLERANCE
from rlvr.algo.curriculum import Feedback
from rlvr.algo.filters import sort_groups
from rlvr.algo.rewards import find_valid
from rlvr.config import ExperimentConfig
from rlvr.data import arms
from rlvr.data.pipeline import TaskStream
from rlvr.evaluation import correct
from rlvr.rollout.collect import Episode
from rlvr.types import Task

State = Mapping[str, Any]
Pick = tuple[int, int]  # number of an arm, and which of its tasks


class Group(NamedTuple):
    """The samples of a prompt.

    Attributes:
        pick: where the prompt came from.
        episodes: [G].
        right, valid: [G] bool, which have a full score, and which count.
        kind: one of `rlvr.algo.filters.KINDS`.
    """

    pick: Pick
    episodes: Sequence[Episode]
    right: np.ndarray
    valid: np.ndarray
    kind: str

    @property
    def rate(self) -> float:
        """Share of the samples that count which are right."""
        return float(self.right[self.valid].mean())

    def measure(self, signal: str) -> float:
        """Returns what the group's arm earns; see `CurriculumConfig.signal`."""
        if signal == "variance":
            return 4 * self.rate * (1 - self.rate)
        if signal == "abs_advantage":
            scores = np.array([e.verdict.score or 0.0 for e in self.episodes])[self.valid]
            spread = scores.std()
            return float(np.abs(scores - scores.mean()).mean() / spread) if spread > SPREAD_TOLERANCE else 0.0
        return self.rate


class Curriculum:
    """Draws tasks by a state, and makes the next state of what was sampled.

    Attributes:
        names: of the arms.

    Raises:
        ConfigError: the arms do not fit the config.
    """

    def __init__(self, config: ExperimentConfig, stream: TaskStream):
        self._config, self._own, own = config, config.curriculum, config.curriculum
        stages.check_stages(own.stages, list(stream.sources))
        made = arms.ARMS["mixture" if own.sampler == "mixture" else own.arm](stream, own.bins)
        self.names, self._arms = list(made), list(made.values())
        self._by_prompt = own.arm == "prompt"
        if len(self.names) == 1 and own.sampler not in ("mixture", "mopps"):
            raise errors.ConfigError(
                f"curriculum.sampler={own.sampler!r} draws between arms, but with curriculum.arm={own.arm!r} there is "
                f"one, {self.names[0]!r}: use 'mixture'"
            )
        total = sum(stream.weights.values())
        self._shares = {label: weight / total for label, weight in stream.weights.items()}
        self._weights = np.array([self._shares[n] if own.sampler == "weights" else 1.0 for n in self.names])
        if self._by_prompt and len(self._arms[0]) < config.rollout.prompts:
            raise errors.ConfigError(
                f"rollout.prompts={config.rollout.prompts} is more than the {len(self._arms[0])} training problems, "
                "which curriculum.sampler='mopps' draws once a step at most"
            )
        # Distinct prompts of each arm, for it must not run out of them.
        self._sizes = [len({t.prompt_id for t in arm.iter_distinct()}) for arm in self._arms] if own.retire_at else []
        curriculum.compute_probabilities(own, self.start()["bandit"], self._weights)  # may refuse the floor

    def start(self) -> dict[str, Any]:
        """Returns the state at the start of the RL; a warm start has taken the first tasks of the mixture."""
        warm, count = self._config.warm_start, len(self.names)
        first = warm.steps * warm.rows if self._own.sampler == "mixture" else 0
        state: dict[str, Any] = {"next": [first] * count, "bandit": curriculum.start(count)}
        state |= {"stage": stages.start()} if self._own.stages else {}
        state |= {"retired": [[] for _ in self.names]} if self._own.retire_at else {}
        return state | ({"prompts": {}} if self._by_prompt else {})

    def tasks(self, picks: Sequence[Pick]) -> list[Task]:
        """Returns the tasks that were picked."""
        return [self._arms[arm][index] for arm, index in picks]

    def probabilities(self, state: State) -> list[float]:
        """Returns the arms' probabilities; zeros for samplers that have none."""
        found = curriculum.compute_probabilities(self._own, state["bandit"], self._open(state))
        return [float(x) for x in found]

    def draw(
        self, state: State, number: int, rl_step: int, round_of_step: int = 0, taken: Sequence[Pick] = ()
    ) -> tuple[list[Pick], dict[str, Any]]:
        """Returns (where the next prompts come from, the state in which they are drawn).

        Args:
            number: of prompts. Single prompts as arms may be fewer.
            taken: what was drawn earlier in the step; single prompts are drawn once.
        """
        counters = (rl_step, round_of_step)
        if self._by_prompt:
            return self._draw_prompts(state, number, counters, taken), dict(state)
        return self._advance(state, self._choose(state, number, counters))

    def draw_arms(self, state: State, counts: Sequence[int]) -> tuple[list[Pick], dict[str, Any]]:
        """Returns the same for so many prompts of each arm."""
        return self._advance(state, [arm for arm, count in enumerate(counts) for _ in range(count)])

    def draw_quota(self, state: State, number: int, rl_step: int) -> list[int]:
        """Returns how many groups of each arm a step is to learn from, drawn by their probabilities."""
        counts = Counter(self._choose(state, number, (rl_step, 0)))
        return [counts[arm] for arm in range(len(self.names))]

    def flat_rates(self, state: State) -> np.ndarray:
        """Returns the share of each arm's groups that were all right or all wrong: [K]."""
        groups, mixed = np.array(state["bandit"]["groups"]), np.array(state["bandit"]["mixed"])
        return np.where(groups > 0, 1 - mixed / np.maximum(groups, 1e-12), 0.0)

    def group(self, picks: Sequence[Pick], episodes: Sequence[Episode]) -> list[Group]:
        """Returns the episodes of the picked prompts as groups."""
        size = self._config.rollout.group_size
        right = (correct(episodes)[0] == 1.0).reshape(-1, size)
        valid = find_valid([e.verdict for e in episodes], self._config.reward).reshape(-1, size)
        kinds = sort_groups(right, valid)
        parts = [episodes[i * size : (i + 1) * size] for i in range(len(picks))]
        return [Group(*fields) for fields in zip(picks, parts, right, valid, kinds, strict=True)]

    def observe(self, state: State, groups: Sequence[Group], drawn: Sequence[float]) -> dict[str, Any]:
        """Returns the state after a step that sampled the groups, its arms drawn with probabilities `drawn`."""
        judged = [g for g in groups if g.kind != "unscorable"]
        new = dict(state)
        new["bandit"] = curriculum.observe(self._own, state["bandit"], self._feedback(state, judged), drawn)
        if self._own.stages:
            last = self.names.index(self._own.stages[state["stage"]["stage"]])
            new["stage"] = stages.advance(
                self._own.stages,
                state["stage"],
                new["bandit"]["accuracy"][last],
                accuracy=self._own.stage_accuracy,
                steps=self._own.stage_steps,
            )
        if self._own.retire_at:
            new["retired"] = [self._retire(arm, own, judged) for arm, own in enumerate(state["retired"])]
        if self._by_prompt:
            new["prompts"] = dict(state["prompts"])
            for g in judged:
                key, right = str(g.pick[1]), int(g.right[g.valid].sum())
                before = new["prompts"].get(key, (1.0, 1.0))
                new["prompts"][key] = curriculum.update_counts(
                    before, right, int(g.valid.sum()) - right, self._own.discount
                )
        return new

    def describe(
        self, state: State, groups: Sequence[Group], used: Sequence[Group], drawn: Sequence[float]
    ) -> dict[str, float]:
        """Returns the metrics of a step that sampled the groups and learns from `used`; `state` is that after it.

        Shares are of what is learned from, accuracies of all that was sampled.
        """
        metrics: dict[str, float] = {}
        if self._own.sampler == "mixture" and len(self._shares) > 1:
            counts = Counter(g.episodes[0].task.task for g in used)
            metrics |= {f"curriculum/share/{name}": count / len(used) for name, count in counts.items()}
            metrics |= {f"curriculum/target/{name}": share for name, share in self._shares.items()}
        elif len(self.names) > 1:
            counts_by_arm, feedback = Counter(g.pick[0] for g in used), self._feedback(state, groups)
            for arm, name in enumerate(self.names):
                metrics[f"curriculum/share/{name}"] = counts_by_arm[arm] / max(len(used), 1)
                if any(drawn):
                    metrics[f"curriculum/target/{name}"] = drawn[arm]
                if feedback.groups[arm]:
                    metrics[f"curriculum/accuracy/{name}"] = float(feedback.accuracy[arm])
                if state["bandit"]["value"][arm] is not None:
                    metrics[f"curriculum/value/{name}"] = state["bandit"]["value"][arm]
        if self._own.stages:
            metrics["curriculum/stage"] = state["stage"]["stage"]
        if self._own.retire_at:
            metrics["curriculum/retired"] = sum(len(own) for own in state["retired"])
        return metrics

    def _open(self, state: State) -> np.ndarray:
        """Returns the arms' weights, 0 for those that are closed."""
        if not self._own.stages:
            return self._weights
        opened = [stages.is_open(name, self._own.stages, state["stage"]) for name in self.names]
        return np.where(opened, self._weights, 0.0)

    def _choose(self, state: State, number: int, counters: tuple[int, int]) -> list[int]:
        shape = (number, len(self.names) + 1)
        uniforms = keys.draw_uniforms(self._config.seed, "curriculum", *counters, shape=shape)
        return curriculum.choose_arms(self._own, state["bandit"], self._open(state), uniforms)

    def _advance(self, state: State, chosen: Sequence[int]) -> tuple[list[Pick], dict[str, Any]]:
        places, picks = list(state["next"]), []
        retired = [set(own) for own in state.get("retired", [()] * len(self.names))]
        for arm in chosen:
            while retired[arm] and self._arms[arm][places[arm]].prompt_id in retired[arm]:
                places[arm] += 1
            picks.append((arm, places[arm]))
            places[arm] += 1
        return picks, {**state, "next": places}

    def _draw_prompts(self, state: State, number: int, counters: tuple[int, int], taken: Sequence[Pick]) -> list[Pick]:
        count = len(self._arms[0])
        uniforms = keys.draw_uniforms(self._config.seed, "curriculum", *counters, shape=(count,))
        uniforms[[index for _, index in taken]] = np.nan
        posterior = np.ones((count, 2))
        for key, pair in state["prompts"].items():
            posterior[int(key)] = pair
        if state["bandit"]["step"] < self._own.warmup_steps:
            posterior[:] = 1.0
        return [(0, index) for index in curriculum.choose_prompts(posterior, uniforms, number)]

    def _retire(self, arm: int, before: Sequence[int], judged: Sequence[Group]) -> list[int]:
        own = [g for g in judged if g.pick[0] == arm and g.rate >= self._own.retire_at]
        retired = sorted({*before, *(g.episodes[0].task.prompt_id for g in own)})
        return [] if len(retired) == self._sizes[arm] else retired

    def _feedback(self, state: State, groups: Sequence[Group]) -> Feedback:
        count = len(self.names)
        sums = {name: np.zeros(count) for name in Feedback._fields}
        for g in groups:
            if g.kind == "unscorable":
                continue
            arm, right = g.pick[0], int(g.right[g.valid].sum())
            sums["groups"][arm] += 1
            sums["mixed"][arm] += g.kind == "mixed"
            sums["right"][arm] += right
            sums["wrong"][arm] += int(g.valid.sum()) - right
            sums["signal"][arm] += g.measure(self._own.signal)
        sums["signal"] /= np.maximum(sums["groups"], 1)
        feedback = Feedback(**sums)
        if self._own.signal == "progress":
            pairs = zip(state["bandit"]["accuracy"], feedback.accuracy, strict=True)
            known = np.array([now if old is None else old for old, now in pairs])
            feedback = feedback._replace(signal=np.abs(feedback.accuracy - known))
        return feedback
