"""Tasks of the generators of the `reasoning-gym` package, with their own scorers.

Problem i of a generator is a pure function of (seed, i). Training scans the generator from `seed`, evaluation
from `seed` + 2**31, and each keeps the first problems that are new and on its side: a question is for
evaluation if its SHA-256 falls into a fixed fifth. So no question text is on both sides, and a set never
holds one twice. Questions that differ in text only (2 + 3 and 3 + 2) may still be on different sides.

Options: the generator's own but `size`, `seed` being 0 unless given; and `generator`, its name where the set
is labelled otherwise.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rlvr import errors, types
from rlvr.data import tasks
from rlvr.data.config import TaskSetConfig, check_options, check_type

_EVAL_SHARE = 0.2
_EVAL_SEED_OFFSET = 2**31
_CHECKED_ENTRIES = 3


def make_reasoning(config: TaskSetConfig, split: str, field: str) -> tasks.LazyTasks:
    """Returns the tasks of one split.

    The verifier is "reasoning_gym", the demonstration the reference answer. The payload holds "dataset" (the
    generator's name), "entry" (the problem as the generator made it) and "options" (the generator's, for
    scorers that depend on them).

    Raises:
        ConfigError: no such generator or option, an option it refuses, a generator that cannot be used here,
            or more problems asked for than were found.
    """
    options = dict(config.options)
    name = options.pop("generator", None) or config.name
    check_type(f"{field}.options['generator']", name, str)
    size = config.train_size if split == "train" else config.eval_size
    if size == 0:
        raise errors.ConfigError(f"{field}.{split}_size=0: reasoning-gym never ends, give a number")
    scanned = 1000 + 20 * size
    generator = _make_generator(name, options, split, scanned, field)
    _check_generator(generator, name, field)
    indices = _find_indices(generator, split, size, scanned)
    if len(indices) < size:
        raise errors.ConfigError(
            f"{field}.{split}_size={size} is more than there are: {len(indices)} different {split} problems "
            f"in {scanned} draws from {name!r} with options {options!r}"
        )

    def make(i: int) -> types.Task:
        return _make_task(config, name, options, generator[indices[i]])

    return tasks.LazyTasks(size, make)


def _make_generator(name: str, options: dict[str, Any], split: str, scanned: int, field: str) -> Any:
    """Returns the generator, refusing by name what reasoning-gym refuses in its own words or not at all."""
    import reasoning_gym  # seconds to import: only runs that use it pay
    from reasoning_gym import factory

    if name not in factory.DATASETS:
        hint = errors.nearest(name, factory.DATASETS)
        raise errors.ConfigError(
            f"{field}.name={name!r} is not a generator of reasoning-gym{hint} "
            f"({len(factory.DATASETS)} are known: {', '.join(sorted(factory.DATASETS))})"
        )
    known = {option.name for option in dataclasses.fields(factory.DATASETS[name][1])} - {"size"}
    check_options(options, known | {"generator"}, field)
    try:
        json.dumps(options)
    except TypeError as error:
        raise errors.ConfigError(f"{field}.options={options!r} cannot be written as JSON: {error}") from error
    seed = options.get("seed", 0)
    check_type(f"{field}.options['seed']", seed, int)
    errors.check_between(f"{field}.options['seed']", seed, 0, _EVAL_SEED_OFFSET - 1)
    seed += _EVAL_SEED_OFFSET if split == "eval" else 0
    try:
        return reasoning_gym.create_dataset(name, **{**options, "seed": seed, "size": scanned})
    except (AssertionError, ValueError, TypeError) as error:
        raise errors.ConfigError(
            f"{field}: the generator {name!r} refuses options={options!r}: {error or type(error).__name__}"
        ) from error


def _check_generator(generator: Any, name: str, field: str) -> None:
    """Raises ConfigError unless problems repeat, survive JSON and score their reference answers as right."""
    score = generator.score_answer
    for i in range(_CHECKED_ENTRIES):
        try:
            entry = generator[i]
            carried = _through_json(entry)
            again = _through_json(generator[i])
        except Exception as error:  # whatever a third-party generator raises: the user must learn which one
            raise errors.ConfigError(
                f"{field}: the generator {name!r} cannot be used with these options: "
                f"problem {i}: {type(error).__name__}: {error}"
            ) from error
        if carried != again:
            raise errors.ConfigError(
                f"{field}: the generator {name!r} cannot be used: problem {i} differs when asked for twice"
            )
        if carried["answer"] is None:
            usable, why = carried == entry, "its problems change when carried through JSON"
        else:
            usable = score(carried["answer"], carried) >= 1
            why = "its scorer does not accept its reference answer after the problem was carried through JSON"
        if not usable:
            raise errors.ConfigError(f"{field}: the generator {name!r} cannot be used: {why}")


def _find_indices(generator: Any, split: str, size: int, scanned: int) -> list[int]:
    """Returns the first `size` indices, fewer if the scan ends, whose question is new and on this side."""
    indices: list[int] = []
    seen: set[int] = set()
    for i in range(scanned):
        if len(indices) == size:
            break
        question = generator[i]["question"]
        key = tasks.hash_text("question", question)
        for_eval = tasks.falls_below(_EVAL_SHARE, "reasoning split", question)
        if key not in seen and for_eval == (split == "eval"):
            seen.add(key)
            indices.append(i)
    return indices


def _make_task(config: TaskSetConfig, name: str, options: dict[str, Any], entry: dict[str, Any]) -> types.Task:
    entry = _through_json(entry)
    answer = "" if entry["answer"] is None else str(entry["answer"])  # a few generators have none
    return tasks.make_task(
        config,
        entry["question"].strip(),
        answer,
        "reasoning_gym",
        demonstration=tasks.render_answer(answer, config.answer_format) if answer else "",
        payload={"dataset": name, "entry": entry, "options": options},
    )


def _through_json(entry: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(entry))
