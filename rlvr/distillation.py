"""Distillation in a run: who is asked with which prompt, and what the learner is given; see `rlvr.algo.distill`.

The student's prompt is that of the task, everywhere: what it samples, what it is evaluated with, and its rows. The hint
stands in prompts of their own, in sequences of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlvr.algo.kl import ReferenceConfig
from rlvr.config import ExperimentConfig
from rlvr.credit import Credit
from rlvr.learner.batch import Row
from rlvr.metrics import mean_kl
from rlvr.parts import Parts
from rlvr.policy.transformer import Params
from rlvr.reference import Reference
from rlvr.rollout.collect import Episode
from rlvr.text.chat import encode_task


class Lesson(NamedTuple):
    """What `Learner.update` takes of a step.

    Attributes:
        rows, reference, teacher: its arguments.
        metrics: what is known of the step before its update.
    """

    rows: Sequence[Row]
    reference: Sequence[np.ndarray] | None
    teacher: Params | None
    metrics: dict[str, float]


class Distillation:
    """What a run's rollouts are made into for the learner; without distillation nothing.

    Args:
        config: of the run.
        parts: of the run.
        reference: of the run, which is followed, saved and resumed with the teacher; a teacher of the start is the
            same copy, where it stays there.
    """

    def __init__(self, config: ExperimentConfig, parts: Parts, reference: Reference):
        own = config.distill
        self._config, self._group, self._parts = own, config.rollout.group_size, parts
        kept = ReferenceConfig("synced", 1, 1.0 - own.ema) if own.teacher == "ema" else ReferenceConfig()
        same = kept.update == config.objective.reference.update == "fixed"
        self._kept = reference if same else Reference(kept, parts.learner, reference.start, name="teacher")
        self._followers = (reference, self._kept)

    def grade(self, params: Params, episodes: Sequence[Episode], rows: Sequence[Row]) -> list[np.ndarray] | None:
        """Returns the teacher's log-probs of what the student sampled; None where the advantages need none.

        Args:
            params: of the policy now.
        """
        own = self._config
        if own.method != "on_policy" or own.form != "sampled":
            return None
        asked = [
            row._replace(prompt=prompt, choices=None, support=None)
            for row, prompt in zip(rows, self._prompts(episodes, hinted=own.hinted), strict=True)
        ]
        if self._parts.teacher is not None:
            return self._parts.teacher.score(asked)
        return self._parts.learner.score(params if own.teacher == "live" else self._kept.load(), asked)

    def prepare(
        self,
        params: Params,
        episodes: Sequence[Episode],
        rows: Sequence[Row],
        credit: Credit,
        reference: Sequence[np.ndarray] | None,
        taught: Sequence[np.ndarray] | None,
    ) -> Lesson:
        """Returns what the learner is to be given.

        Args:
            params: of the policy now.
            rows: the episodes as they were sampled.
            credit: of the rows.
            reference: of the rows.
            taught: what `grade` returned.
        """
        metrics = credit.metrics() | ({} if taught is None else {"distill/divergence": mean_kl(rows, taught)})
        rows = credit.attach(rows)
        if self._config.method == "pi":
            return self._pair(params, episodes, rows, metrics)
        if not self._config.compares():
            return Lesson(rows, reference, None, metrics)
        plain, shown = self._prompts(episodes), self._prompts(episodes, hinted=self._config.hinted)
        assert [tuple(row.prompt) for row in rows] == plain, "the student was asked something else than its task"
        rows = [row._replace(other_prompt=prompt) for row, prompt in zip(rows, shown, strict=True)]
        if self._parts.teacher is not None:
            return Lesson(rows, reference, self._parts.teacher.params, metrics)
        return Lesson(rows, reference, None if self._config.teacher == "live" else self._kept.load(), metrics)

    def _pair(
        self, params: Params, episodes: Sequence[Episode], rows: Sequence[Row], metrics: dict[str, float]
    ) -> Lesson:
        """Returns both sides of pi-Distill: the teacher's own rows, and its completions behind the student's prompts.

        Prompt by prompt, so that minibatches hold both sides of whole groups. Each side is aggregated as if it were
        alone: of two sides of equal lengths, twice its share undoes that their rows are counted together.
        """
        own = self._config
        plain, shown = self._prompts(episodes), self._prompts(episodes, hinted=True)
        assert [tuple(row.prompt) for row in rows] == shown, "the teacher was asked something else than the hinted task"
        sides = [s for s, share in enumerate((own.alpha, 1 - own.alpha)) if share]
        twice = [row._replace(weight=len(sides) * row.weight, choices=None) for row in rows]
        teacher = [row._replace(group=2 * row.group, weight=own.alpha * row.weight, borrowed=False) for row in twice]
        student = [
            row._replace(prompt=prompt, group=2 * row.group + 1, weight=(1 - own.alpha) * row.weight, borrowed=True)
            for row, prompt in zip(twice, plain, strict=True)
        ]
        known: list[list[np.ndarray]] = [[], []]
        if own.compares():
            teacher = [row._replace(other_prompt=other.prompt) for row, other in zip(teacher, student, strict=True)]
            student = [row._replace(other_prompt=other.prompt) for row, other in zip(student, teacher, strict=True)]
        elif own.coef:
            # The other side's log-probs of the same tokens; the teacher's of its own are recorded.
            known = [self._parts.learner.score(params, student), [row.old_logprobs for row in student]]
        groups = range(0, len(rows), self._group)
        out = [(teacher, student)[s][g : g + self._group] for g in groups for s in sides]
        reference = [known[s][g : g + self._group] for g in groups for s in sides]
        joined = list(itertools.chain(*reference))
        return Lesson(list(itertools.chain(*out)), joined or None, None, metrics)

    def _prompts(self, episodes: Sequence[Episode], *, hinted: bool = False) -> list[tuple[int, ...]]:
        tokenizer = self._parts.tokenizer
        of = {e.task.prompt_id: tuple(encode_task(tokenizer, e.task, hinted=hinted)) for e in episodes}
        return [of[episode.task.prompt_id] for episode in episodes]

    def follow(self, params: Params, rl_step: int) -> None:
        """See `Reference.follow`."""
        for each in dict.fromkeys(self._followers):
            each.follow(params, rl_step)

    def moved(self) -> dict[str, Params]:
        """See `Reference.moved`."""
        return {name: tree for each in self._followers for name, tree in each.moved().items()}

    def resume(self, copies: Mapping[str, Params]) -> None:
        """See `Reference.resume`."""
        for each in self._followers:
            each.resume(copies)
