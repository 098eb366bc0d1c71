"""Tasks as arrays, in the order of the ordinary loop's stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlvr.config import ExperimentConfig
from rlvr.parts import encode_demonstration
from rlvr.text.chat import encode_task
from rlvr.text.tokenizer import Tokenizer
from rlvr.types import Task


class TaskArrays(NamedTuple):
    """P tasks; any further axes come before P.

    Attributes:
        prompts: [P, T] int32 token ids, zeros past the end.
        lengths: [P] int32 of the prompts.
        ids: [P] uint32 `Task.prompt_id`.
        answers: [P, A] int32 bytes of the answers, -1 past the end.
    """

    prompts: Any
    lengths: Any
    ids: Any
    answers: Any


class Demonstrations(NamedTuple):
    """What a warm start imitates: completions [P, C] int32 with their stop token, zeros past the end; lengths [P]."""

    completions: Any
    lengths: Any


class TaskTable:
    """Makes arrays of tasks, each task's row once.

    Args:
        config: the longest prompt and completion, and how answers are written.
        tokenizer: of the policy.
    """

    def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._widths = config.engine.max_prompt_tokens, config.engine.max_new_tokens
        self._rows: dict[Task, tuple[np.ndarray, int, int, np.ndarray]] = {}

    def arrays(self, tasks: Sequence[Task]) -> TaskArrays:
        """Returns the tasks' arrays."""
        prompts, lengths, ids, answers = zip(*(self._row(task) for task in tasks), strict=True)
        return TaskArrays(np.stack(prompts), np.array(lengths, np.int32), np.array(ids, np.uint32), np.stack(answers))

    def demonstrations(self, tasks: Sequence[Task], width: int) -> Demonstrations:
        """Returns what the tasks show, in rows of so many tokens."""
        found = [self._show(task) for task in tasks]
        rows = np.stack([_fill(ids.tolist(), width, 0) for ids in found])
        return Demonstrations(rows, np.array([len(ids) for ids in found], np.int32))

    def longest_demonstration(self, tasks: Iterable[Task]) -> int:
        """Returns the tokens of the longest, which may be far fewer than a completion's budget."""
        return max(len(self._show(task)) for task in tasks)

    def _show(self, task: Task) -> np.ndarray:
        return encode_demonstration(self._tokenizer, task)[1]

    def _row(self, task: Task) -> tuple[np.ndarray, int, int, np.ndarray]:
        # Not by the task itself, whose payload is no part of a hash.
        key: Any = (task.task, task.prompt, task.answer)
        if key not in self._rows:
            prompt = encode_task(self._tokenizer, task)
            # An answer longer than any completion can match no completion, however it is cut.
            answer = list(task.answer.encode())[: self._widths[1] + 1]
            row = _fill(prompt, self._widths[0], 0), len(prompt), task.prompt_id, _fill(answer, self._widths[1] + 1, -1)
            self._rows[key] = row
        return self._rows[key]


def _fill(ids: Sequence[int], width: int, padding: int) -> np.ndarray:
    row = np.full(width, padding, np.int32)
    row[: len(ids)] = ids
    return row
