"""When a run goes wrong: back to a checkpoint from before, and on with smaller steps.

What happened is in `rollbacks.json` of the workdir, which a resumed run reads: its learning rate is the config's
times a factor for each rollback. The same prompts are sampled again, by the same keys.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlvr import checkpoint, errors, workdir
from rlvr.config import ExperimentConfig
from rlvr.errors import Setback

log = logging.getLogger("rlvr")

Result = TypeVar("Result")
_FILE = "rollbacks.json"


def watch_reward(record: dict[str, Any], reward: float, step: int, config: ExperimentConfig) -> None:
    """Notes the mean reward of an RL step in the run's record.

    Args:
        step: of the whole run.

    Raises:
        Setback: the mean of `rollback.window` steps is `rollback.reward_drop` below the best such mean before it.
    """
    c = config.rollback
    if not c.reward_drop or not np.isfinite(reward):
        return
    recent = [*record.get("recent_rewards", []), float(reward)][-c.window :]
    record["recent_rewards"] = recent
    if len(recent) < c.window:
        return
    mean = float(np.mean(recent))
    best = max(record.get("best_reward", mean), mean)
    record["best_reward"] = best
    if mean < best - c.reward_drop:
        seen = f"the mean reward of {c.window} steps fell to {mean:.4g}, from {best:.4g} at its best"
        raise Setback(f"{seen} (rollback.reward_drop={c.reward_drop})", step - c.window + 1)


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns the rollbacks of a run so far, as JSON values.

    Raises:
        WorkdirError: the file is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        return []
    try:
        return list(json.loads(path.read_text()))
    except ValueError as error:
        raise errors.WorkdirError(f"{path} is damaged ({error}); choose another --workdir") from error


def keep_on(config: ExperimentConfig, folder: Path, attempt: Callable[[ExperimentConfig], Result]) -> Result:
    """Returns what `attempt` returns, tried again after each rollback.

    Args:
        attempt: goes on with the run from its checkpoints, given the config with the learning rate to use.

    Raises:
        Setback: one from which there is no way back.
    """
    while True:
        try:
            return attempt(slow_down(config, len(read(folder))))
        except Setback as error:
            setback = Setback(str(error), error.since)  # without the frames, which hold the state
        roll_back(folder, config, setback)


def slow_down(config: ExperimentConfig, rollbacks: int) -> ExperimentConfig:
    """Returns the config with the learning rate that it has after so many rollbacks."""
    rate = config.optimizer.learning_rate * config.rollback.shrink**rollbacks
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=rate))


def roll_back(folder: Path, config: ExperimentConfig, setback: Setback) -> None:
    """Takes a run back to its newest checkpoint from before a setback, or the oldest that it has.

    Raises:
        Setback: the same, if the run has no rollback left or no checkpoint at all.
    """
    done, steps = read(folder), checkpoint.saved_steps(folder)
    multihost_utils.sync_global_devices("all know what there is to go back to")
    if len(done) >= config.rollback.limit or not steps:
        raise setback
    to = max((step for step in steps if step <= setback.since), default=min(steps))
    log.warning("%s: back to step %d with a learning rate %g times as large", setback, to, config.rollback.shrink)
    if jax.process_index() == 0:
        # In this order: killed in between, the run meets the same setback again and comes here again.
        checkpoint.drop_after(folder, to)
        workdir.write_json(folder / _FILE, [*done, {"reason": str(setback), "since": setback.since, "to": to}])
    multihost_utils.sync_global_devices("rolled back")
