"""Runs of one structure, side by side: compiled once, driven block by block from the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlvr import keys
from rlvr.config import ExperimentConfig
from rlvr.data.pipeline import make_eval_sets, make_train_stream
from rlvr.learner.optimizer import make_schedule
from rlvr.parts import check_tasks, read_tokenizer
from rlvr.policy.transformer import Params
from rlvr.program import lanes
from rlvr.program.loop import Lane, Loop, side_by_side
from rlvr.program.rollout import Samples
from rlvr.program.support import check_expressible
from rlvr.program.tasks import TaskArrays, TaskTable
from rlvr.program.verifier import Verdicts
from rlvr.statistics import mean_interval
from rlvr.types import STATUSES

Rows = list[dict[str, float]]  # the metrics of steps
WARM_BLOCK = 50  # steps of the warm start in one dispatch


class Batch:
    """Runs whose configs are equal but for what `rlvr.program.lanes` lets differ.

    Args:
        configs: of the runs, resolved.

    Raises:
        ConfigError: a config that the program cannot express.
        DataError: a prompt or demonstration over its budget.
    """

    def __init__(self, configs: Sequence[ExperimentConfig]):
        for config in configs:
            check_expressible(config)
        pairs = [lanes.split(config) for config in configs]
        if len({lanes.structure_key(structure) for structure, _ in pairs}) > 1:
            raise ValueError("runs of one batch must have the same structure")
        self.configs, self.config = configs, pairs[0][0]
        tokenizer = read_tokenizer(self.config)
        self._stream, self._eval_sets = make_train_stream(self.config.data), make_eval_sets(self.config.data)
        check_tasks(self.config, tokenizer, self._stream, self._eval_sets)
        self._table = TaskTable(self.config, tokenizer)
        self._loop = Loop(self.config, tokenizer.stop_ids)
        self._scalars = [own for _, own in pairs]
        self._warm_state = jax.jit(side_by_side(self._loop.warm_state, 1, 0))
        self._warm_steps = jax.jit(side_by_side(self._loop.warm_steps, 1, 2), donate_argnums=0)
        self._begin = jax.jit(side_by_side(self._loop.begin, 3, 1))
        self._steps = jax.jit(side_by_side(self._loop.steps, 1, 2), donate_argnums=0)
        self._evaluate = jax.jit(side_by_side(self._loop.evaluate, 2, 1))

    def abstract_params(self) -> Params:
        """Returns the shapes of the parameters of all lanes, with their axis."""
        count = len(self.configs)
        shapes = self._loop.policy.abstract_params()
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), shapes)

    def warm_start(self, seeds: Sequence[int]) -> tuple[Params, list[Rows]]:
        """Runs the warm starts of several seeds side by side.

        Returns:
            (parameters with an axis of seeds, for each the rows of metrics of its steps).
        """
        warm = self.config.warm_start
        rate = make_schedule(warm.optimizer, warm.steps)
        state = self._warm_state(np.stack([_key_data(seed, "init") for seed in seeds]))
        rows: list[Rows] = [[] for _ in seeds]
        width = self._table.longest_demonstration(self._stream.iter_distinct())
        for first in range(0, warm.steps, WARM_BLOCK):
            count = min(WARM_BLOCK, warm.steps - first)
            tasks = self._stream.batch(first * warm.rows, count * warm.rows)
            given = self._table.arrays(tasks), self._table.demonstrations(tasks, width)
            split = jax.tree.map(lambda x, n=count: x.reshape(n, warm.rows, *x.shape[1:]), given)
            state, metrics = self._warm_steps(state, *split)
            metrics["loss/supervised"] = metrics.pop("loss/policy")
            # The others compare with a sampling that did not happen.
            kept = {name: x for name, x in metrics.items() if name.startswith(("loss/", "optimizer/"))}
            kept.pop("optimizer/skipped_in_a_row")
            for own, more in zip(rows, _split(kept, len(seeds), count), strict=True):
                own += [{**row, "optimizer/lr": float(rate(step))} for step, row in enumerate(more, first)]
        return state.params, rows

    def begin(self, params: Params) -> Lane:
        """Returns all lanes at the start of the RL, from parameters with an axis of lanes."""
        lane: Lane = self._begin(params, *self._given())
        return lane

    def abstract_lane(self) -> Lane:
        """Returns the shapes of what `begin` returns."""
        lane: Lane = jax.eval_shape(self._begin, self.abstract_params(), *self._given())
        return lane

    def run(self, lane: Lane, first: int, count: int) -> tuple[Lane, list[Rows], np.ndarray]:
        """Runs steps first to first + count - 1 of the RL.

        Returns:
            (the lanes, for each the rows of metrics of its steps, for each the most updates in a row that were skipped
            for non-finite gradients). What has no value in a step is left out there.
        """
        tasks = self._tasks(first, count + self.config.rollout.staleness)
        lane, metrics = self._steps(lane, jnp.int32(first), tasks)
        skipped = np.max(np.asarray(metrics.pop("optimizer/skipped_in_a_row")), axis=1)
        rows = _split(metrics, len(self.configs), count)
        for own, scalars in zip(rows, self._scalars, strict=True):
            for step, row in enumerate(own, first):
                row["optimizer/lr"] = self._loop.learning_rate(scalars, step)
        return lane, rows, skipped

    def evaluate(self, lane: Lane) -> list[dict[str, dict[str, Any]]]:
        """Returns the results of each lane on every evaluation set, as `rlvr.evaluation.evaluate` does; what only the
        host's verifiers tell (the lenient accuracy) is None."""
        results: list[dict[str, dict[str, Any]]] = [{} for _ in self.configs]
        for name, tasks in self._eval_sets.items():
            arrays = self._table.arrays([tasks[i] for i in range(len(tasks))])
            samples, verdicts = jax.tree.map(np.asarray, self._evaluate(lane.state.params, lane.keys, arrays))
            for i, result in enumerate(results):
                result[name] = _summarize(*jax.tree.map(lambda x, i=i: x[i], (samples, verdicts)))
        return results

    def _given(self) -> tuple[Any, Any, TaskArrays]:
        """Returns the scalars and keys of all lanes, and the tasks that are sampled before any update."""
        scalars = {name: jnp.array([own[name] for own in self._scalars], jnp.float32) for name in self._scalars[0]}
        data = {
            role: np.stack([_key_data(config.seed, role) for config in self.configs])
            for role in ("rollout", "evaluation")
        }
        return scalars, data, self._tasks(0, self.config.rollout.staleness)

    def _tasks(self, first: int, count: int) -> TaskArrays:
        """Returns the tasks [count, P, ...] of steps of the RL."""
        warm, prompts = self.config.warm_start, self.config.rollout.prompts
        tasks = self._stream.batch(warm.steps * warm.rows + first * prompts, max(count, 1) * prompts)
        return jax.tree.map(lambda x: x.reshape(-1, prompts, *x.shape[1:])[:count], self._table.arrays(tasks))


def _key_data(seed: int, role: str) -> np.ndarray:
    return np.asarray(jax.random.key_data(keys.make_key(seed, role)))


def _split(metrics: Mapping[str, Any], lanes: int, count: int) -> list[Rows]:
    """Returns the metrics [lanes, steps] as rows, without what is not finite."""
    read = {name: np.asarray(x, np.float64) for name, x in metrics.items()}
    return [
        [{name: float(x[lane, i]) for name, x in read.items() if np.isfinite(x[lane, i])} for i in range(count)]
        for lane in range(lanes)
    ]


def _summarize(samples: Samples, verdicts: Verdicts) -> dict[str, Any]:
    """Returns the results of one set; see `rlvr.evaluation.summarize`."""
    correct = np.asarray(verdicts.correct, np.float64)
    statuses = np.where(verdicts.correct, "correct", np.where(verdicts.unparsed, "unparsed", "wrong")).tolist()
    return {
        "n": len(correct),
        "unscorable": 0,
        "accuracy": float(correct.mean()),
        "accuracy_lenient": None,
        "interval": [float(x) for x in mean_interval(correct)],
        "score": float(correct.mean()),
        "mean_tokens": float(np.mean(samples.lengths)),
        "truncated": float(np.mean(~samples.stopped)),
        "statuses": {status: statuses.count(status) for status in STATUSES if status in statuses},
        "parts": {},
    }
