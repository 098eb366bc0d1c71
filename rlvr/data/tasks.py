"""What the sources share: hashes of problems, demonstrations in the wanted format, and lazy random access."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from rlvr import types
from rlvr.data import config as data_config

SPLITS = ("train", "eval")

# How each format of `rlvr.verifiers.extract.ANSWER_FORMATS` is written, for demonstrations.
ANSWER_TEMPLATES = {
    "bare": "{}",
    "boxed": "\\boxed{{{}}}",
    "tag": "<answer>{}</answer>",
    "hash": "#### {}",
}


def hash_text(salt: str, text: str) -> int:
    """Returns 64 bits of the SHA-256 of (salt, text): the same on every machine, unlike `hash`."""
    digest = hashlib.sha256(f"{salt}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def falls_below(fraction: float, salt: str, text: str) -> bool:
    """Returns True for about `fraction` of all texts; which ones depends on `salt`."""
    return hash_text(salt, text) < fraction * 2**64


def compute_prompt_id(task: str, prompt: str) -> int:
    """Returns the first 32 bits of the SHA-256 of the task's name and the prompt."""
    return hash_text(task, prompt) >> 32


def render_answer(answer: str, answer_format: str) -> str:
    """Returns the answer as the format wants it written."""
    return ANSWER_TEMPLATES[answer_format].format(answer)


def make_task(
    config: data_config.TaskSetConfig,
    problem: str,
    answer: str,
    verifier: str,
    *,
    demonstration: str = "",
    payload: Mapping[str, Any] | None = None,
    hint: str = "",
    hinted_demonstration: str = "",
) -> types.Task:
    """Returns the task of one problem: the set's instruction, system turn and answer format added.

    Args:
        hint: privileged information; "" for none.
        hinted_demonstration: "" for the same as without it.
    """
    prompt = f"{problem}\n{config.instruction}" if config.instruction else problem
    return types.Task(
        prompt_id=compute_prompt_id(config.label, prompt),
        task=config.label,
        prompt=prompt,
        answer=answer,
        verifier=verifier,
        system=config.system,
        demonstration=demonstration,
        payload={"answer_format": config.answer_format, **(payload or {})},
        hinted_prompt=show_hint(config.hint_template, prompt, hint),
        hinted_demonstration=(hinted_demonstration or demonstration) if hint else "",
    )


def show_hint(template: str, prompt: str, hint: str) -> str:
    """Returns the prompt of a teacher, "" where there is no hint; what looks like a field in either text stays."""
    parts = re.split(r"(\{hint\}|\{prompt\})", template)
    return "".join({"{hint}": hint, "{prompt}": prompt}.get(part, part) for part in parts) if hint else ""


class LazyTasks(Sequence[types.Task]):
    """A sequence whose items are made when asked for; `make(i)` must be pure. A valid Grain data source."""

    def __init__(self, length: int, make: Callable[[int], types.Task]):
        self._length = length
        self._make = make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> types.Task: ...
    @overload
    def __getitem__(self, index: slice) -> list[types.Task]: ...
    def __getitem__(self, index: int | slice) -> types.Task | list[types.Task]:
        chosen = range(self._length)[index]  # also turns negative indices round, and refuses those outside
        return [self._make(i) for i in chosen] if isinstance(chosen, range) else self._make(chosen)
