"""The errors a user can cause, and the few checks that raise them. Verifier workers load it: it imports no jax."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class ConfigError(ValueError):
    """A config that cannot work: names the field, its value and what would be accepted."""


class DataError(ValueError):
    """Data that cannot be used: an empty set, a malformed row, a prompt over the budget."""


class WeightsError(ValueError):
    """Weights that cannot be loaded: a missing or corrupt file, a missing, left-over or misshapen tensor."""


class WorkdirError(RuntimeError):
    """A workdir that belongs to another config, or that another run is using."""


class Setback(RuntimeError):
    """A run that has gone wrong.

    Args:
        reason: what is seen.
        since: the step (of the whole run) from whose start on nothing is to be trusted.
    """

    def __init__(self, reason: str, since: int):
        super().__init__(reason)
        self.since = since


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the candidate most like `name`, or ""."""
    match = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def check_choice(field: str, value: object, choices: Iterable[str]) -> None:
    """Raises ConfigError unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        hint = nearest(str(value), choices)
        raise ConfigError(f"{field}={value!r} is not known{hint} (accepted: {', '.join(choices)})")


def check_new_folder(folder: Path) -> None:
    """Raises WeightsError unless the folder is empty, or absent and can be made. Its parents are made."""
    try:
        used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.rmdir()
    except OSError as error:
        raise WeightsError(f"{folder} cannot be written: {error}") from error
    if used:
        raise WeightsError(f"{folder} exists and is not an empty folder: choose another or remove it")


def check_at_least(field: str, value: float, least: float) -> None:
    """Raises ConfigError unless `value` >= `least`."""
    if not value >= least:
        raise ConfigError(f"{field}={value!r} must be at least {least}")


def check_between(field: str, value: float, low: float, high: float) -> None:
    """Raises ConfigError unless low <= value <= high."""
    if not low <= value <= high:
        raise ConfigError(f"{field}={value!r} must be between {low} and {high}")


def check_temperature(field: str, value: float) -> None:
    """Raises ConfigError for a temperature that float32 cannot divide logits by: 0 is greedy, and no division."""
    if value != 0 and not value >= 1e-6:
        raise ConfigError(f"{field}={value!r} must be 0, which is greedy, or at least 1e-06")
