"""Drives a grid whose runs are lanes of a few programs: what `rlvr.grid.driver` does with processes, in one.

Runs that may be lanes of one program (`rlvr.program.lanes`) make a group. A group's state is saved after every block of
steps, in `DIR/groups/NAME`, with the names of its runs: after a kill the same lanes go on together, so that the numbers
are those of a grid that was never killed. What the runs leave behind is what `launch.train` writes, without
checkpoints, samples and reports.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlvr import errors, evaluation, fingerprint, warm_start, workdir
from rlvr.config import ExperimentConfig, config_hash
from rlvr.grid.driver import stop_signals
from rlvr.grid.ledger import Ledger, Record
from rlvr.grid.spec import Run
from rlvr.program import lanes
from rlvr.program.batch import Batch, Rows
from rlvr.program.support import check_expressible
from rlvr.writers import MetricsWriter, format_duration

Configs = Mapping[str, ExperimentConfig]  # by run name
_STATE, _RUNS = "state.npz", "runs.json"


def check_grid(runs: Sequence[Run], configs: Configs) -> None:
    """Raises ConfigError naming the first point that one program cannot express."""
    for run in runs:
        try:
            check_expressible(configs[run.name])
        except errors.ConfigError as error:
            raise errors.ConfigError(f"point {run.point.label!r}: {error}") from error


def share_groups(runs: Sequence[Run], configs: Configs, index: int, count: int) -> list[Run]:
    """Returns the runs of one of `count` machines: all those of every `count`-th structure, from the `index`-th on."""
    keys = [lanes.structure_key(lanes.split(configs[run.name])[0]) for run in runs]
    place = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return [run for run, key in zip(runs, keys, strict=True) if place[key] % count == index]


class AtOnce:
    """Works through runs; see `drive`.

    Args:
        folder: of the grid.
        configs: of all runs.
        lanes: runs of one program, at most; 0 for all.
        retry_failed: whether runs that failed before are tried once more.
        say: shown to the user, line by line.
    """

    def __init__(self, folder: Path, configs: Configs, *, lanes: int, retry_failed: bool, say: Callable[[str], None]):
        self._folder, self._configs, self._lanes = folder, configs, lanes
        self._retry_failed, self._say = retry_failed, say
        self._ledger = Ledger(folder)

    def drive(self, runs: Sequence[Run]) -> bool:
        """Runs all that are not done. SIGTERM or SIGINT stops it after the block of steps that is under way.

        Returns:
            Whether it came to the end (failed runs included), not stopped.
        """
        with stop_signals(lambda: os._exit(1)) as stopped:
            for group, begun in self._groups(runs):
                if stopped():
                    break
                with self._claimed(group) as records:
                    if records is not None:
                        over = [begun and record.state in ("done", "failed") for record in records]
                        self._run_group(group, records, over, stopped)
            return not stopped()

    def _groups(self, runs: Sequence[Run]) -> list[tuple[list[Run], bool]]:
        """Returns the groups that were begun, then those of the runs that are left; and which of the two they are."""
        by_name, groups = {run.name: run for run in runs}, []
        for path in sorted((self._folder / "groups").glob(f"*/{_RUNS}")):
            names = json.loads(path.read_text())
            if all(name in by_name for name in names):
                groups.append(([by_name[name] for name in names], True))
        begun = {run.name for group, _ in groups for run in group}
        left: dict[str, list[Run]] = {}
        for run in runs:
            state = self._ledger.read(run).state
            wanted = state != "done" and (state != "failed" or self._retry_failed)
            if wanted and (run.name not in begun or state == "failed"):
                left.setdefault(lanes.structure_key(lanes.split(self._configs[run.name])[0]), []).append(run)
        for found in left.values():
            size = self._lanes or len(found)
            groups += [(found[i : i + size], False) for i in range(0, len(found), size)]
        return groups

    @contextlib.contextmanager
    def _claimed(self, group: Sequence[Run]) -> Iterator[list[Record] | None]:
        """Yields the records of a group's runs, whose locks are held meanwhile; None if somebody else has one."""
        with contextlib.ExitStack() as held:
            for run in group:
                lock = self._ledger.claim(run)
                if lock is None:
                    self._say(f"{run.title}: somebody else works at it; its group of {len(group)} runs is left to them")
                    yield None
                    return
                held.callback(os.close, lock)
            yield [self._ledger.read_held(run) for run in group]

    def _run_group(
        self, group: Sequence[Run], records: list[Record], over: Sequence[bool], stopped: Callable[[], bool]
    ) -> None:
        """Runs a group to its end, or until it is stopped, and records how that went for the runs that are not over."""
        began = time.monotonic()
        left = [(run, record) for run, record, ended in zip(group, records, over, strict=True) if not ended]
        for run, record in left:
            record.state, record.reason, record.attempts = "running", "", record.attempts + 1
            self._ledger.write(run, record)
        title = f"{group[0].title} and {len(group) - 1} more" if len(group) > 1 else group[0].title
        self._say(f"{title}: one program of {len(group)} lanes")
        work = _Group(self._folder, group, self._configs, over)
        try:
            reasons = work.finish(stopped)
        except (errors.DataError, errors.WorkdirError, RuntimeError) as error:
            reasons = [f"{type(error).__name__}: {error}".splitlines()[0]] * len(group)
            work.forget()
        seconds = time.monotonic() - began
        told = {run.name: reason for run, reason in zip(group, reasons, strict=True)}
        for run, record in left:
            reason = told[run.name]
            record.state = "pending" if reason is None else "failed" if reason else "done"
            record.reason = "stopped by a signal" if reason is None else reason
            record.seconds += seconds / len(left)
            self._ledger.write(run, record)
            if reason:
                self._say(f"{run.title}: failed: {reason}")
        self._say(f"{title}: {'stopped' if None in reasons else 'ended'} after {format_duration(seconds)}")


class _Group:
    """One group's hold on its program and its workdirs."""

    def __init__(self, root: Path, group: Sequence[Run], configs: Configs, finished: Sequence[bool]):
        self._root, self._group, self._finished = root, group, finished
        self._configs = [configs[run.name] for run in group]
        names = json.dumps([run.name for run in group])
        self._folder = root / "groups" / hashlib.sha256(names.encode()).hexdigest()[:16]
        self._workdirs = [root / "runs" / run.name for run in group]
        self._total = self._configs[0].steps
        self._warm = self._configs[0].warm_start.steps

    def finish(self, stopped: Callable[[], bool]) -> list[str | None]:
        """Runs all steps that are left; returns why each run failed, "" if it did not, None if all were stopped."""
        self._batch = Batch(self._configs)
        for folder, config, over in zip(self._workdirs, self._configs, self._finished, strict=True):
            if not over:
                folder.mkdir(parents=True, exist_ok=True)
                workdir.adopt(folder, config)
        self._folder.mkdir(parents=True, exist_ok=True)
        workdir.write_json(self._folder / _RUNS, [run.name for run in self._group])
        lane, facts = self._load_or_begin()
        with contextlib.ExitStack() as opened:
            resume = self._warm + facts["step"] if facts["step"] else 0
            writers = [
                None if over else opened.enter_context(self._open_writer(folder, resume))
                for folder, over in zip(self._workdirs, self._finished, strict=True)
            ]
            if not facts["step"]:
                self._write(writers, 0, facts.pop("warm"), "warm_start", facts)
            interval = self._configs[0].evaluation.interval
            while facts["step"] < self._total:
                if stopped():
                    return [None] * len(self._group)
                first = facts["step"]
                count = min(interval - first % interval, self._total - first)
                began = time.monotonic()
                lane, rows, skipped = self._batch.run(lane, first, count)
                facts["eval"] = self._batch.evaluate(lane)
                for own, result in zip(rows, facts["eval"], strict=True):
                    own[-1] |= evaluation.flatten(result)
                self._note_failures(skipped, facts)
                facts["step"], facts["wall_s"] = first + count, facts["wall_s"] + time.monotonic() - began
                self._write(writers, self._warm + first, rows, "rl", facts)
                self._save(lane, facts)  # after the lines: a kill between the two must not lose them
        self._write_results(lane, facts)
        self.forget()
        return list(facts["failed"])

    def forget(self) -> None:
        """Removes the state of the group."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _load_or_begin(self) -> tuple[Any, dict[str, Any]]:
        """Returns (lanes, facts): as they were saved, or at the start of the RL."""
        facts: dict[str, Any]
        if (self._folder / _STATE).exists():
            with np.load(self._folder / _STATE) as saved:
                leaves, facts = _unpack(saved)
            return jax.tree.unflatten(jax.tree.structure(self._batch.abstract_lane()), leaves), facts
        params, rows = warm_up(self._root / "warm", self._batch)
        lane = self._batch.begin(params)
        start = self._batch.evaluate(lane)
        begun = {"step": 0, "wall_s": 0.0, "eval_start": start, "eval": start, "failed": [""] * len(self._group)}
        return lane, {**begun, "warm": rows}

    def _save(self, lane: Any, facts: Mapping[str, Any]) -> None:
        _write_arrays(self._folder / _STATE, _pack(lane, facts))

    def _open_writer(self, folder: Path, resume: int) -> MetricsWriter:
        total = self._warm + self._total
        return MetricsWriter(folder, resume_step=resume, total_steps=total, stream=io.StringIO())

    def _write(
        self, writers: Sequence[MetricsWriter | None], first: int, rows: Sequence[Rows], phase: str, facts: Any
    ) -> None:
        for writer, own in zip(writers, rows, strict=True):
            for step, row in enumerate(own, first):
                if writer is not None:
                    writer.write(step, {"phase": phase, **row, "wall_s": facts["wall_s"]})

    def _note_failures(self, skipped: Iterable[float], facts: dict[str, Any]) -> None:
        for i, worst in enumerate(skipped):
            if worst >= self._configs[i].optimizer.max_skips and not facts["failed"][i]:
                facts["failed"][i] = f"{worst:g} updates in a row had non-finite gradients and were skipped"

    def _write_results(self, lane: Any, facts: Mapping[str, Any]) -> None:
        for i, (folder, config, over) in enumerate(zip(self._workdirs, self._configs, self._finished, strict=True)):
            if over or facts["failed"][i]:
                continue
            params = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), lane.state.params)
            result = {
                "config_hash": config_hash(config),
                "steps": self._warm + self._total,
                "params_sha256": fingerprint.hash_params(params),
                "eval": facts["eval"][i],
                "eval_start": facts["eval_start"][i],
                "wall_s": round(facts["wall_s"], 1),
                "lanes": len(self._group),
            }
            workdir.write_json(folder / "result.json", result)


def warm_up(folder: Path, batch: Batch) -> tuple[Any, list[Rows]]:
    """Runs a batch's warm starts, or reads what another batch of the same seeds left in the folder.

    Returns:
        (parameters with an axis of lanes, the rows of metrics of each).
    """
    seeds = list(dict.fromkeys(config.seed for config in batch.configs))
    # All seeds at once, so that the numbers do not depend on what was there before.
    name = hashlib.sha256(f"{warm_start.make_key(batch.config)} {seeds}".encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npz"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the grid may be at it
        if not path.exists():
            params, rows = batch.warm_start(seeds)
            _write_arrays(path, _pack(params, rows))
    with np.load(path) as saved:
        leaves, rows = _unpack(saved)
    chosen = [seeds.index(config.seed) for config in batch.configs]
    structure = jax.tree.structure(batch.abstract_params())
    return jax.tree.unflatten(structure, [leaf[chosen] for leaf in leaves]), [rows[i] for i in chosen]


def _pack(tree: Any, facts: Any) -> dict[str, np.ndarray]:
    """Returns the leaves of a tree, and JSON values, as named arrays."""
    arrays = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    return arrays | {"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)}


def _unpack(arrays: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], Any]:
    leaves = [arrays[f"leaf{i}"] for i in range(len(arrays) - 1)]
    return leaves, json.loads(arrays["facts"].tobytes())


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to one file; a reader sees the old one or the new one, whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
