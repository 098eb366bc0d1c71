"""Every test runs on 8 simulated CPU devices and refuses silent rank promotion."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.sharding import AxisType, Mesh  # noqa: E402

from rlvr.mesh import AXES  # noqa: E402
from rlvr.policy.config import PolicyConfig  # noqa: E402
from rlvr.policy.transformer import Policy  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def shared() -> Path:
    """The folder of real benchmark rows beside the repository; the test is skipped where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared data beside the repository")
    return folder


MOE_LAYERS = {"dense": (), "moe": (0, 1), "mixed": (1,)}


@functools.cache
def _tiny_policy(kind: str) -> tuple[Policy, Any]:
    # All sizes differ, H != K != h, H * h != D, and V is no multiple of anything: a swapped axis cannot go unseen.
    config = PolicyConfig(
        vocab_size=97,
        dim=48,
        layers=2,
        query_heads=6,
        kv_heads=2,
        head_size=10,
        hidden=56,
        moe_layers=MOE_LAYERS[kind],
        experts=8,
        experts_per_token=2,
        expert_hidden=40,
        tied_head=kind != "dense",
    )
    policy = Policy(config)
    params = jax.jit(policy.init)(jax.random.key(7))
    # A table and head of three times the usual spread: log-probs differ by nats between tokens.
    return policy, {
        name: jax.tree.map(lambda x: x * 3.0, p) if name in ("embed", "head") else p for name, p in params.items()
    }


@pytest.fixture(scope="session")
def tiny_policy() -> Callable[[str], tuple[Policy, Any]]:
    """Returns (policy, parameters) of kind "dense", "moe" or "mixed": 2 layers, 97 ids."""
    return _tiny_policy


@pytest.fixture
def one_device() -> Iterator[Mesh]:
    """A mesh of one device, set for the time of the test."""
    mesh = jax.make_mesh((1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh
