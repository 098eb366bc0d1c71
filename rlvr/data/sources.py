"""The table of task sources, and the one call that makes a split of one.

A source is a function (config, split "train" or "eval", place of the config for error messages) -> sequence
of tasks. What it returns has a length and pure random access: a Grain data source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlvr import errors, types
from rlvr.data import arithmetic, gsm8k, jsonl, reasoning, string_programs
from rlvr.data.config import TaskSetConfig
from rlvr.data.tasks import SPLITS

Source = Callable[[TaskSetConfig, str, str], Sequence[types.Task]]

SOURCES: dict[str, Source] = {
    "arithmetic": arithmetic.make_arithmetic,
    "reasoning_gym": reasoning.make_reasoning,
    "gsm8k": gsm8k.make_gsm8k,
    "jsonl": jsonl.make_jsonl,
    "string_programs": string_programs.make_string_programs,
}
FILE_SOURCES = ("gsm8k", "jsonl")


def make_source(config: TaskSetConfig, split: str, field: str) -> Sequence[types.Task]:
    """Returns one split of a task set; `field` is where the set stands in the config.

    Raises:
        ConfigError: the set cannot be made as configured.
        DataError: its files cannot be used, or the split is empty.
    """
    errors.check_choice("split", split, SPLITS)
    config.validate(field)
    tasks = SOURCES[config.source](config, split, field)
    if not tasks:
        raise errors.DataError(f"{field} ({config.label}): the {split} split is empty")
    return tasks
