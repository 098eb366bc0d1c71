"""The user's own tasks, from JSON Lines.

A row has the texts "prompt" and "answer" (which only verifiers that compare with one need), and may have
    "verifier": a key of `rlvr.verifiers.base.VERIFIERS`, or "package.module:function"; default "numeric"
        where the answer is a number, else "exact";
    "task": name of the task, default the set's label;
    "system": system turn, default the set's;
    "demonstration": a completion to imitate in a warm start;
    "hint": privileged information, which only a teacher sees (`TaskSetConfig.hint_template`);
    "payload": an object with whatever else the verifier needs; may override "answer_format";
    "id": carried in the payload.
Any other field is refused, so that a misspelt one is not lost.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from rlvr import errors, types
from rlvr.data import rows, tasks
from rlvr.data.config import TaskSetConfig, check_options

FIELDS = ("prompt", "answer", "verifier", "task", "system", "demonstration", "hint", "payload", "id")
_COMPARING = (None, "exact", "numeric", "math", "choice", "f1")
_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?")


def make_jsonl(config: TaskSetConfig, split: str, field: str) -> list[types.Task]:
    """Returns the tasks of one split, in the order of the file.

    Raises:
        ConfigError: options are given, one file for both splits, or more problems asked for than there are.
        DataError: a missing, unreadable or empty file, a malformed row, or an evaluation prompt that is also
            trained on.
    """
    check_options(config.options, (), field)
    path = Path(config.path).expanduser()
    if path.is_file() and config.weight > 0 and config.eval_size > 0:
        raise errors.ConfigError(
            f"{field}.path={config.path!r} is one file, but the set is both trained on and evaluated: give a "
            f"folder with train.jsonl and eval.jsonl, or set {field}.weight or {field}.eval_size to 0"
        )
    found = _read_tasks(config, path if path.is_file() else rows.find_file(path, split))
    if split == "eval" and config.weight > 0:
        _check_apart(found, _read_tasks(config, rows.find_file(path, "train")), path)
    wanted = config.train_size if split == "train" else config.eval_size
    if wanted > len(found):
        raise errors.ConfigError(f"{field}.{split}_size={wanted} is more than there are: {len(found)} in {config.path}")
    return found[: wanted or None]


def _check_apart(evaluated: list[types.Task], trained: list[types.Task], folder: Path) -> None:
    known = {task.prompt for task in trained}
    shared = [task.prompt for task in evaluated if task.prompt in known]
    if shared:
        raise errors.DataError(
            f"{folder}: {len(shared)} evaluation prompts are trained on as well, the first: {rows.shorten(shared[0])}"
        )


def _read_tasks(config: TaskSetConfig, path: Path) -> list[types.Task]:
    return [_make_task(config, path, number, row) for number, row in rows.read_rows(path)]


def _make_task(config: TaskSetConfig, path: Path, number: int, row: dict[str, Any]) -> types.Task:
    for name in row:
        if name not in FIELDS:
            raise errors.DataError(
                f"{path}, line {number}: the field {name!r} is not known{errors.nearest(name, FIELDS)} "
                f"(accepted: {', '.join(FIELDS)})"
            )
    answer = rows.read_text(path, number, row, "answer", None if row.get("verifier") in _COMPARING else "")
    payload = row.get("payload", {})
    if not isinstance(payload, dict):
        raise errors.DataError(
            f"{path}, line {number}: the field 'payload' must be an object, not {rows.shorten(payload)}"
        )
    answer_format = payload.get("answer_format", config.answer_format)
    if not isinstance(answer_format, str) or answer_format not in tasks.ANSWER_TEMPLATES:
        raise errors.DataError(
            f"{path}, line {number}: the field 'payload' has answer_format={answer_format!r} "
            f"(accepted: {', '.join(tasks.ANSWER_TEMPLATES)})"
        )
    task = tasks.make_task(
        config,
        rows.read_text(path, number, row, "prompt"),
        answer,
        rows.read_text(path, number, row, "verifier", _guess_verifier(answer)),
        demonstration=rows.read_text(path, number, row, "demonstration", ""),
        payload=payload | ({"id": row["id"]} if "id" in row else {}),
        hint=rows.read_text(path, number, row, "hint", ""),
    )
    name = rows.read_text(path, number, row, "task", config.label)
    return dataclasses.replace(
        task,
        task=name,
        prompt_id=tasks.compute_prompt_id(name, task.prompt),
        system=rows.read_text(path, number, row, "system", config.system),
    )


def _guess_verifier(answer: str) -> str:
    return "numeric" if _NUMBER.fullmatch(answer.strip()) else "exact"
