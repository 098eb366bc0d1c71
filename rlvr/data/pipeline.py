"""The training stream and the evaluation sets.

Each set is shuffled anew every epoch with a seed of its own, repeated without end, and mixed with the others
by weight: Grain `MapDataset`s all the way, so that element i is a pure function of (config, i). The position
in the data is that one integer: a run resumed by another number of processes goes on with exactly the tasks
it would have had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import grain

from rlvr import errors, types
from rlvr.data import tasks
from rlvr.data.config import DataConfig
from rlvr.data.pass_rates import read_pass_rates, select_tasks
from rlvr.data.sources import make_source


class TaskStream:
    """The endless sequence of training tasks: `stream[i]` for any i >= 0.

    Attributes:
        sources: the train split of each set, by label.
        weights: of the sets.
        pass_rates: of the problems by prompt_id, if the config names a file of them.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[types.Task]],
        weights: Mapping[str, float],
        seed: int,
        pass_rates: Mapping[int, float] | None = None,
    ):
        self.sources, self.weights, self.pass_rates, self._seed = sources, weights, pass_rates, seed
        # Grain seeds epoch e of a shuffle with seed + e, so neighbouring seeds would share their
        # permutations, and equal ones would tie sets of equal length together: each set's seed is a hash of
        # the seed and its label.
        shuffled = []
        for label, source in sources.items():
            own_seed = tasks.hash_text(f"shuffle {seed}", label) >> 32
            shuffled.append(grain.MapDataset.source(source).shuffle(seed=own_seed).repeat())
        self._mixed = grain.MapDataset.mix(shuffled, weights=[weights[label] for label in sources])

    def __getitem__(self, index: int) -> types.Task:
        """Returns task `index` of the stream. Raises IndexError if it is negative."""
        if index < 0:
            raise IndexError(f"index {index}: the stream has a beginning and no end")
        return self._mixed[index]

    def batch(self, start: int, size: int) -> list[types.Task]:
        """Returns tasks start to start + size - 1."""
        return [self[i] for i in range(start, start + size)]

    def part(self, label: str, source: Sequence[types.Task]) -> TaskStream:
        """Returns the stream of some of the tasks alone; that of a whole set has the set's own order."""
        return TaskStream({label: source}, {label: 1.0}, self._seed)

    def iter_distinct(self) -> Iterator[types.Task]:
        """Yields every task of every set once, set after set."""
        for source in self.sources.values():
            yield from source


def make_train_stream(config: DataConfig) -> TaskStream:
    """Returns the training stream over all sets of positive weight.

    Raises:
        ConfigError: a field that cannot work, or no set of positive weight.
        DataError: files that cannot be used, an empty set, or a problem whose pass rate is wanted and not known.
    """
    config.validate()
    chosen = {i: task_set for i, task_set in enumerate(config.tasks) if task_set.weight > 0}
    if not chosen:
        raise errors.ConfigError("data.tasks: every weight is 0, so there is nothing to train on")
    sources = {s.label: make_source(s, "train", f"data.tasks[{i}]") for i, s in chosen.items()}
    rates = None
    if config.pass_rates:
        rates = read_pass_rates(Path(config.pass_rates))
        bounds = config.pass_rate_low, config.pass_rate_high
        sources = {label: select_tasks(source, rates, *bounds, label) for label, source in sources.items()}
    return TaskStream(sources, {s.label: s.weight for s in chosen.values()}, config.seed, rates)


def make_eval_sets(config: DataConfig) -> dict[str, Sequence[types.Task]]:
    """Returns the evaluation tasks of each set that has an `eval_size`, by label, in the order of the config.

    Raises:
        ConfigError: a field that cannot work, or an `eval_size` larger than the split.
        DataError: files that cannot be used.
    """
    config.validate()
    return {
        task_set.label: make_source(task_set, "eval", f"data.tasks[{i}]")
        for i, task_set in enumerate(config.tasks)
        if task_set.eval_size > 0
    }
