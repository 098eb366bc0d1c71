"""Every test runs on 8 simulated CPU devices and refuses silent rank promotion."""

import atexit
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# Compiling is most of what tests do, and many compile the same: the processes of a session share it.
COMPILED = "JAX_COMPILATION_CACHE_DIR"
if COMPILED not in os.environ:
    os.environ[COMPILED] = tempfile.mkdtemp(prefix="rlvr-tests-compiled-")
    atexit.register(shutil.rmtree, os.environ[COMPILED], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
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


# kind: (layers, those that are mixtures)
KINDS = {"shallow": (1, ()), "dense": (2, ()), "moe": (2, (0, 1)), "mixed": (2, (1,))}


@functools.cache
def _tiny_policy(kind: str) -> tuple[Policy, Any]:
    layers, moe_layers = KINDS[kind]
    # All sizes differ, H != K != h, H * h != D, and V is no multiple of anything: a swapped axis cannot go unseen.
    config = PolicyConfig(
        vocab_size=97,
        dim=48,
        layers=layers,
        query_heads=6,
        kv_heads=2,
        head_size=10,
        hidden=56,
        moe_layers=moe_layers,
        experts=8,
        experts_per_token=2,
        expert_hidden=40,
        tied_head=kind == "moe",
    )
    policy = Policy(config)
    return policy, random_params(policy)


def random_params(policy: Policy) -> Any:
    """Returns parameters without compiling anything: norms near one, and logits that differ by nats."""
    rng = np.random.default_rng(7)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        scale = path[-1].key == "scale"
        noise = rng.normal(size=leaf.shape) * (0.1 if len(leaf.shape) == 1 else policy.config.dim**-0.5)
        spread = 3.0 if path[0].key in ("embed", "head") else 1.0
        return jnp.asarray(noise * spread + scale, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, policy.abstract_params())


@pytest.fixture(scope="session")
def tiny_policy() -> Callable[[str], tuple[Policy, Any]]:
    """Returns (policy, parameters) of a kind in `KINDS`; 97 ids."""

    return _tiny_policy


@pytest.fixture(scope="session")
def params_of() -> Callable[[Policy], Any]:
    """Returns random parameters of any policy; see `random_params`."""
    return random_params


@pytest.fixture
def one_device() -> Iterator[Mesh]:
    """A mesh of one device, set for the time of the test."""
    mesh = jax.make_mesh((1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh
