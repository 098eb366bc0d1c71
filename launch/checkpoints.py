"""What the entry points that only use a policy share: loading it, an engine for it, and rows in and out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from rlvr import errors, partition
from rlvr.mesh import MeshConfig, make_mesh
from rlvr.policy_folder import LoadedPolicy, load_policy
from rlvr.rollout.config import EngineConfig
from rlvr.rollout.engine import Engine

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Policy folder (of launch/import_weights) or the workdir of a run.", required=True
)


@contextlib.contextmanager
def loaded(mesh: Mesh | None = None) -> Iterator[tuple[LoadedPolicy, Mesh]]:
    """Loads --checkpoint on a mesh (by default of all devices, rows split over them) and makes that mesh current."""
    mesh = mesh or make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        yield load_policy(Path(CHECKPOINT.value), mesh), mesh


def make_engine(
    loaded: LoadedPolicy,
    mesh: Mesh,
    longest_prompt: int,
    max_tokens: int,
    slots: int,
    stop_strings: Sequence[str] = (),
) -> Engine:
    """Returns an engine for prompts of up to `longest_prompt` tokens; `slots` is rounded up to the mesh."""
    shards = partition.batch_shards(mesh)
    config = EngineConfig(
        slots=-(-slots // shards) * shards,
        prefill_rows=-(-8 // shards) * shards,
        max_prompt_tokens=longest_prompt,
        max_new_tokens=max_tokens,
        prompt_buckets=tuple(2**i for i in range(5, longest_prompt.bit_length()) if 2**i < longest_prompt),
    )
    tokenizer = loaded.tokenizer
    return Engine(
        loaded.policy, config, tokenizer.stop_ids, mesh, stop_strings=stop_strings, decode_text=tokenizer.decode
    )


@contextlib.contextmanager
def writing(flag: str, path: Path) -> Iterator[None]:
    """Raises DataError naming the flag and the path where what is inside cannot write it."""
    try:
        yield
    except OSError as error:
        raise errors.DataError(f"--{flag}: {path} cannot be written: {error}") from error


def check_output(flag: str, path: Path) -> None:
    """Makes the folder of a file that is written at the end, and says at once what would refuse it then.

    Raises:
        DataError: the path is a folder, or nothing can be written there.
    """
    with writing(flag, path):
        if path.is_dir():
            raise IsADirectoryError(f"it is a folder; a file is wanted, such as {path / 'out.jsonl'}")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.touch()
        partial.unlink()


def write_rows(flag: str, path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a JSON Lines file, the value of a flag; it appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with writing(flag, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
        partial.rename(path)
