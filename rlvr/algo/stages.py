"""Stages of a curriculum: harder task sets are opened once the easier ones are known, or their time has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlvr import errors


def check_stages(stages: Sequence[str], labels: Sequence[str]) -> None:
    """Raises ConfigError unless the stages name training sets, each once."""
    for i, label in enumerate(stages):
        errors.check_choice(f"curriculum.stages[{i}]", label, labels)
        if label in stages[:i]:
            raise errors.ConfigError(f"curriculum.stages={tuple(stages)} names {label!r} twice")


def start() -> dict[str, int]:
    """Returns the state of the first stage: which it is, and how many steps it has lasted."""
    return {"stage": 0, "steps": 0}


def advance(
    stages: Sequence[str], state: Mapping[str, int], known: float | None, *, accuracy: float, steps: int
) -> dict[str, int]:
    """Returns the state after a step.

    Args:
        stages: labels of the task sets, in the order in which they are opened.
        known: running accuracy of the set that the stage opened, None if it is not known.
        accuracy: the next stage begins from this accuracy on; 0: not for that.
        steps: it begins after so many steps of this one; 0: not for that.
    """
    lasted = state["steps"] + 1
    learned = known is not None and 0 < accuracy <= known
    if state["stage"] < len(stages) - 1 and (learned or 0 < steps <= lasted):
        return {"stage": state["stage"] + 1, "steps": 0}
    return {"stage": state["stage"], "steps": lasted}


def is_open(label: str, stages: Sequence[str], state: Mapping[str, int]) -> bool:
    """Whether a task set is open: those that no stage names always are."""
    return label not in stages[state["stage"] + 1 :]
