"""The verifier of the benches, which workers load: it must not import jax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.benches.workload import dummy_reward
from rlvr.types import Verdict

VERIFIER = f"{__name__}:verify"


def verify(completion: str, reference: str, payload: Mapping[str, Any]) -> Verdict:
    """Takes no time and gives every sample of a group another reward, so that no row is without gradient."""
    return Verdict(dummy_reward(completion), "correct")
