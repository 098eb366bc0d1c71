"""What a curriculum draws from: the training tasks as one stream, by set, by pass rate, or prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlvr import errors, types
from rlvr.data.pass_rates import find_rate
from rlvr.data.pipeline import TaskStream
from rlvr.data.tasks import LazyTasks


def whole(stream: TaskStream, bins: int) -> dict[str, TaskStream]:
    """Returns the mixture as one arm."""
    return {"mixture": stream}


def by_set(stream: TaskStream, bins: int) -> dict[str, TaskStream]:
    """Returns an arm for each task set, of its label."""
    return {label: stream.part(label, source) for label, source in stream.sources.items()}


def by_rate(stream: TaskStream, bins: int) -> dict[str, TaskStream]:
    """Returns an arm for each of `bins` equal ranges of pass rates in which there are tasks, the lowest first.

    Raises:
        ConfigError: there are no pass rates.
    """
    if stream.pass_rates is None:
        raise errors.ConfigError("curriculum.arm='bin' needs data.pass_rates, by which problems are put into bins")
    found: dict[int, list[tuple[Sequence[types.Task], int]]] = {}
    for source, i in _places(stream):
        number = min(int(find_rate(source[i], stream.pass_rates) * bins), bins - 1)
        found.setdefault(number, []).append((source, i))
    names = {number: f"{number / bins:.3g}-{(number + 1) / bins:.3g}" for number in sorted(found)}
    return {name: stream.part(name, _collect(found[number])) for number, name in names.items()}


def by_prompt(stream: TaskStream, bins: int) -> dict[str, Sequence[types.Task]]:
    """Returns one arm of all tasks once, set after set."""
    return {"prompts": _collect(_places(stream))}


def _places(stream: TaskStream) -> list[tuple[Sequence[types.Task], int]]:
    return [(source, i) for source in stream.sources.values() for i in range(len(source))]


def _collect(places: list[tuple[Sequence[types.Task], int]]) -> LazyTasks:
    return LazyTasks(len(places), lambda i: places[i][0][places[i][1]])


# Each takes the stream of all tasks and a number of bins, and returns the arms by name, each with an order of its own.
ARMS: dict[str, Callable[[TaskStream, int], dict]] = {
    "mixture": whole,
    "task": by_set,
    "bin": by_rate,
    "prompt": by_prompt,
}
