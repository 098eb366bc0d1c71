"""Metadata of pretrained files: JSON and typed reads, with errors that name the file and the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlvr import errors


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises WeightsError naming the file if it is missing or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise errors.WeightsError(f"{path}: the file is missing") from error
    except OSError as error:
        raise errors.WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise errors.WeightsError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise errors.WeightsError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


class Fields:
    """The metadata of one file: a config.json, or the key-value section of a GGUF file.

    A value of None counts as absent, as it does in a config.json.

    Attributes:
        where: the file, for messages.
        values: the raw metadata.
    """

    def __init__(self, where: str, values: Mapping[str, Any]):
        self.where = where
        self.values = values

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Returns an integer of at least `least`; raises WeightsError if absent without default or anything else."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(key, "must be a positive integer" if least == 1 else f"must be an integer >= {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a positive finite float; raises WeightsError if absent without default or anything else."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.error(key, "must be a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Returns a boolean; raises WeightsError for anything else."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def require(self, key: str, *accepted: Any) -> None:
        """Raises WeightsError unless the field is absent or one of `accepted`."""
        value = self.values.get(key)
        if value is not None and value not in accepted:
            names = ", ".join(map(repr, accepted)) or "absent"
            raise self.error(key, f"is not supported (accepted: {names})")

    def error(self, key: str, reason: str) -> errors.WeightsError:
        """Returns the error for one field, its value shown."""
        value = repr(self.values.get(key))
        if len(value) > 200:
            value = value[:200] + "..."
        return errors.WeightsError(f"{self.where}: {key}={value} {reason}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise errors.WeightsError(f"{self.where}: the field {key} is missing")
        return default
