"""The folder of a run: whose it is, and that only one run uses it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlvr import errors
from rlvr.config import ExperimentConfig, config_hash, differences, to_dict


@contextlib.contextmanager
def claim(workdir: Path) -> Iterator[None]:
    """Holds the workdir for this process; the kernel lets go of it however the process ends.

    Raises:
        WorkdirError: another live process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / ".lock"
    with open(path, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise errors.WorkdirError(
                f"{workdir} is in use by another run (process {lock.read().strip() or 'unknown'}): "
                "stop that run, or choose another --workdir"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def adopt(workdir: Path, config: ExperimentConfig) -> None:
    """Writes `config.json`, or checks that the one there is of the same run.

    A config under which no step was ever begun (its data was refused, say) is replaced.

    Raises:
        WorkdirError: the workdir belongs to another config; the differing fields are named.
    """
    path = workdir / "config.json"
    fields = to_dict(config)
    if path.exists() and (workdir / "metrics.jsonl").exists():
        try:
            found = json.loads(path.read_text())["config"]
        except (json.JSONDecodeError, KeyError) as error:
            raise errors.WorkdirError(f"{path} is damaged ({error}); choose another --workdir") from error
        lines = differences(found, fields)
        if lines:
            raise errors.WorkdirError(
                f"{workdir} belongs to a run with another config; choose another --workdir, or undo:\n  "
                + "\n  ".join(lines)
            )
    write_json(path, {"config_hash": config_hash(config), "config": fields})


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file; a reader sees the old one or the new one, whole."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
