"""All Orbax: checkpoints of a run, and trees of parameters.

A run's checkpoint at step s holds what step s starts from: `params`, `opt_state`, `run` (JSON) and, where there are
such and the rest does not make them again, the `critic`, the `rollout` (sampled before) and the trees of `COPIES`.
Saving is asynchronous; a save that fails is reported and the run goes on with the last good checkpoint.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from rlvr import errors, memory
from rlvr.learner.state import TrainState
from rlvr.policy.transformer import Params

log = logging.getLogger("rlvr")

# Trees shaped like the trained parameters that a run may carry beside them.
COPIES = ("reference", "teacher")

# What a checkpoint's folder is called that cannot be read, and that another of its step is to replace.
DAMAGED, OLD = "damaged-", "replaced-"

# How many bytes of a policy are on their way to its folder at a time, beside its largest array.
SAVE_BYTES = 64_000_000


@dataclasses.dataclass
class CheckpointConfig:
    """When checkpoints are written and which are kept.

    Attributes:
        interval: steps between checkpoints; the last step is always saved.
        keep: how many of the newest are kept.
        keep_best: how many of the best (by mean held-out accuracy at their step) are kept beside them.
    """

    interval: int = 20
    keep: int = 2
    keep_best: int = 1

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        errors.check_at_least("checkpoints.interval", self.interval, 1)
        errors.check_at_least("checkpoints.keep", self.keep, 1)
        errors.check_at_least("checkpoints.keep_best", self.keep_best, 0)


def measure(metrics: Any) -> float:
    """Returns the held-out accuracy of a checkpoint, less than any if it was not measured."""
    return float((metrics or {}).get("accuracy", -1.0))


@dataclasses.dataclass
class Best(checkpoint_managers.PreservationPolicy):
    """Keeps the `count` checkpoints of highest accuracy, of those that have one."""

    count: int

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        """Returns which of the checkpoints, oldest first, are to be kept."""
        ranked = sorted((measure(info.metrics), i) for i, info in enumerate(checkpoints))
        best = {i for accuracy, i in ranked[len(ranked) - min(self.count, len(ranked)) :] if accuracy >= 0}
        return [i in best for i in range(len(checkpoints))]


class Restored(NamedTuple):
    """A checkpoint read back: the step it starts, the run's own record, what was sampled for that step already, and the
    copies of the trained parameters by name."""

    step: int
    state: TrainState
    run: dict[str, Any]
    rollout: dict[str, Any] | None
    copies: dict[str, Params]


class Checkpoints:
    """The checkpoints of one run, under `workdir/checkpoints`."""

    def __init__(self, workdir: Path, config: CheckpointConfig):
        self._folder = workdir.absolute() / "checkpoints"
        policies = [checkpoint_managers.LatestN(config.keep), Best(config.keep_best)]
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=measure,  # without one Orbax holds the metrics in memory only, and a resumed run knows none
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        if jax.process_index() == 0:
            self._drop_replaced()
        multihost_utils.sync_global_devices("checkpoints that were being replaced")
        self._manager = self._open()
        self._pending: int | None = None
        self.failed_saves = 0

    def save(
        self,
        step: int,
        state: TrainState,
        run: dict[str, Any],
        accuracy: float | None = None,
        rollout: dict[str, np.ndarray] | None = None,
        copies: Mapping[str, Params] = MappingProxyType({}),
        again: bool = False,
    ) -> None:
        """Starts saving what step `step` starts from; returns once the device arrays are copied. One that is saved
        already stays as it is, but `again` replaces it.

        Args:
            rollout: arrays of what was sampled for that step already, the same on all processes.
            accuracy: mean held-out accuracy of these parameters, where it was just measured.
            copies: trees shaped like the trained parameters; names are of `COPIES`.
        """
        self.wait()
        memory.trim()  # of the copies of the save before: their pieces would be left lying between what lives on
        if step in self._manager.all_steps():
            if not again:
                return
            self._rename([step], OLD)
        found = {"rollout": rollout, "critic": state.critic}
        more = {name: ocp.args.StandardSave(item) for name, item in found.items() if item is not None}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(state.opt_state),
            run=ocp.args.JsonSave(run),
            **more,
            **{name: ocp.args.StandardSave(tree) for name, tree in copies.items()},
        )
        metrics = {} if accuracy is None else {"accuracy": accuracy}
        self._pending = step
        try:
            self._manager.save(step, args=items, metrics=metrics, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(error)

    def wait(self) -> None:
        """Waits for the save under way, if any; a failure is reported, counted, and cleaned up."""
        if self._pending is None:
            return
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(error)
        if jax.process_index() == 0:
            self._drop_replaced()
        self._pending = None

    def restore(self, targets: Any) -> Restored | None:
        """Reads the newest checkpoint that is whole.

        Newer ones that are damaged are named in a warning and renamed to `damaged-<step>`. Where none is whole
        nothing is renamed: it may be the storage that fails, and the run must not begin anew on the next try.

        Args:
            targets: function from a step to the abstract TrainState with shardings (any mesh).

        Returns:
            None where there is no checkpoint at all.

        Raises:
            WeightsError: there are checkpoints, and none is whole.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for i, step in enumerate(steps):
            target = targets(step)
            optional = {"rollout": ocp.args.StandardRestore()}
            optional |= {name: ocp.args.StandardRestore(target.params) for name in COPIES}
            held = {name: how for name, how in optional.items() if (self._folder / str(step) / name).exists()}
            if target.critic is not None:
                held["critic"] = ocp.args.StandardRestore(target.critic)
            try:
                items = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        params=ocp.args.StandardRestore(target.params),
                        opt_state=ocp.args.StandardRestore(target.opt_state),
                        run=ocp.args.JsonRestore(),
                        **held,
                    ),
                )
            except Exception as error:  # whatever a damaged file raises, and it raises many things
                last = first_line(error)
            else:
                self._rename(steps[:i], DAMAGED)
                copies = {name: items[name] for name in COPIES if name in held}
                state = TrainState(items.params, items.opt_state, items.get("critic"))
                return Restored(step, state, items.run, items.get("rollout"), copies)
            _drop_failed_tasks()
            log.warning("checkpoint %d cannot be read (%s); trying the one before", step, last)
        if steps:
            raise errors.WeightsError(f"none of the checkpoints {steps} in {self._folder} can be read: {last}")
        return None

    def latest(self) -> int:
        """Returns the step of the newest checkpoint that is saved, 0 (the beginning) if there is none."""
        return self._manager.latest_step() or 0

    def close(self) -> None:
        """Waits for the save under way and releases the manager."""
        self.wait()
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        names = ("params", "opt_state", "critic", "run", "rollout", *COPIES)
        return ocp.CheckpointManager(self._folder, item_names=names, options=self._options)

    def _failed(self, error: Exception) -> None:
        """Reports a failed save and removes what it left, so that no partial checkpoint can ever be restored."""
        step, self._pending = self._pending, None
        self.failed_saves += 1
        try:
            self._manager.close()
        except (OSError, ValueError, RuntimeError):
            pass  # the same failure again
        if jax.process_index() == 0:
            self._clear_away(f"{step}*")
            self._drop_replaced()
        _drop_failed_tasks()
        self._manager = self._open()
        good = self._manager.latest_step()
        log.error(
            "checkpoint %s could not be saved (%s); the run goes on, the last good checkpoint is %s",
            step, first_line(error), "none" if good is None else good,
        )  # fmt: skip

    def _clear_away(self, pattern: str) -> None:
        """Removes what a failed save left, until nothing comes back: of its items one fails first, and Orbax does not
        wait for the threads of the others, which make their folders anew."""
        quiet, end = 0, time.monotonic() + 10
        while quiet < 10 and time.monotonic() < end:
            left = list(self._folder.glob(pattern))
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            quiet = 0 if left else quiet + 1
            time.sleep(0.05)

    def _rename(self, steps: list[int], prefix: str) -> None:
        """Sets checkpoints aside."""
        if not steps:
            return
        self._manager.close()
        if jax.process_index() == 0:
            for step in steps:
                shutil.rmtree(self._folder / f"{prefix}{step}", ignore_errors=True)
                (self._folder / str(step)).rename(self._folder / f"{prefix}{step}")
        multihost_utils.sync_global_devices("checkpoints set aside")
        self._manager = self._open()

    def _drop_replaced(self) -> None:
        """Removes what was replaced by a checkpoint that is whole, and puts back what was not."""
        for old in self._folder.glob(f"{OLD}*"):
            new = self._folder / old.name.removeprefix(OLD)
            if new.exists():
                shutil.rmtree(old)
            else:
                old.rename(new)


def saved_steps(workdir: Path) -> list[int]:
    """Returns the steps of a run's checkpoints, oldest first."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def drop_after(workdir: Path, step: int) -> None:
    """Removes a run's checkpoints of later steps, the newest first; no `Checkpoints` may be open."""
    for later in reversed(saved_steps(workdir)):
        if later > step:
            shutil.rmtree(workdir / "checkpoints" / str(later))


def first_line(error: Exception) -> str:
    """Returns an exception as one short line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def save_params(folder: Path, params: Params) -> None:
    """Writes parameters to a new folder; it appears whole or not at all. Raises OSError where it cannot be made."""
    # Where Orbax fails to make it, its threads keep the process from ending for minutes.
    folder.parent.mkdir(parents=True, exist_ok=True)
    # What is being written is held a second time on the host: without a bound, all of it. Any one array must fit.
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    with ocp.StandardCheckpointer(save_concurrent_gb=(SAVE_BYTES + largest) / 1e9) as checkpointer:
        checkpointer.save(folder.absolute(), params)


def load_tree(folder: Path, target: Params) -> Params:
    """Reads the parameters that `target` describes, a tree of ShapeDtypeStructs with shardings.

    Raises:
        WeightsError: the folder is missing or damaged, or a tensor is missing, left over or misshapen.
    """
    if not folder.is_dir():
        raise errors.WeightsError(f"there are no parameters at {folder}")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree: Any = checkpointer.metadata(folder.absolute()).item_metadata
            if tree is None:
                raise errors.WeightsError(f"the parameters at {folder} cannot be read: their index is damaged")
            _check_shapes(folder, getattr(tree, "tree", tree), target)
            return checkpointer.restore(folder.absolute(), target)
    except errors.WeightsError:
        raise
    except Exception as error:  # whatever a damaged file raises
        reason = first_line(error)
    _drop_failed_tasks()
    raise errors.WeightsError(f"the parameters at {folder} cannot be read: {reason}")


def _drop_failed_tasks() -> None:
    """Collects the tasks that a failure leaves in Orbax: left to chance, each one logs it later."""
    noise = logging.getLogger("asyncio")
    before, noise.disabled = noise.disabled, True
    gc.collect()
    noise.disabled = before


def _check_shapes(folder: Path, found: Any, wanted: Any) -> None:
    """Raises WeightsError naming the first tensor that is missing, left over or misshapen."""

    def flatten(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {"/".join(str(getattr(k, "key", k)) for k in path): tuple(leaf.shape) for path, leaf in leaves}

    have, want = flatten(found), flatten(wanted)
    for name in sorted(want.keys() | have.keys()):
        if name not in have:
            raise errors.WeightsError(f"{folder}: tensor {name} {want[name]} is missing")
        if name not in want:
            raise errors.WeightsError(f"{folder}: tensor {name} {have[name]} belongs to no parameter of this policy")
        if have[name] != want[name]:
            raise errors.WeightsError(f"{folder}: tensor {name} is {have[name]}; the policy wants {want[name]}")
