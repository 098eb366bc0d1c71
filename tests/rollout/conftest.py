"""Engines of the tiny policies, compiled once for all tests."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import pytest
from jax.sharding import AxisType

from rlvr.mesh import AXES
from rlvr.rollout.config import EngineConfig
from rlvr.rollout.engine import Engine

STOP_IDS = tuple(range(2, 97, 8))


@pytest.fixture(scope="session")
def engine_of(tiny_policy: Callable[[str], Any]) -> Callable[..., Engine]:
    """Returns the engine of (kind, slots): prompts up to 12 in buckets of 5 and 12, up to 10 new tokens."""
    mesh = jax.make_mesh((1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:1])

    @functools.cache
    def make(kind: str, slots: int) -> Engine:
        config = EngineConfig(
            slots=slots, max_prompt_tokens=12, max_new_tokens=10, prefill_rows=2, prompt_buckets=(5,), decode_steps=3
        )
        return Engine(tiny_policy(kind)[0], config, STOP_IDS, mesh)

    return make
