"""Exports a policy to a Hugging Face folder, which transformers and what builds on it load.

    python -m launch.export_weights --checkpoint=runs/mine --output=exported --dtype=bfloat16

The checkpoint is a policy folder or the workdir of a run (its newest checkpoint, or --step). The output holds
config.json, safetensors (in shards with an index where large), the tokenizer, its chat template and
generation_config.json; it appears whole or not at all. The architecture is that of the weights the policy came from,
or --family; a policy that it cannot express is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from launch import cli, mesh_flags
from launch.checkpoints import CHECKPOINT
from rlvr import errors, policy_folder
from rlvr.weights import exporter, families, layout, safetensors

_OUTPUT = flags.DEFINE_string("output", None, "The folder to write; may exist if empty.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(safetensors.DTYPES), "Type of the stored weights.")
_FAMILY = flags.DEFINE_enum(
    "family", None, list(families.FAMILIES), "Architecture to write it as; default: the one it came from."
)
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint of a run; default: the newest.", lower_bound=0)
_SHARD_GB = flags.DEFINE_float("shard_gb", exporter.SHARD_BYTES / 1e9, "Largest weight file, in GB.", lower_bound=0.0)


def main(argv: Sequence[str]) -> None:
    """Reads, writes, and says what was written."""
    cli.refuse_arguments(argv)
    if not math.isfinite(_SHARD_GB.value):
        raise errors.ConfigError(f"--shard_gb={_SHARD_GB.value} must be a finite number of at least 0")
    output = Path(_OUTPUT.value).absolute()
    source = Path(CHECKPOINT.value)
    # What can be refused without the weights comes before the time of reading them.
    errors.check_new_folder(output)
    exporter.describe(policy_folder.read_policy_config(source), _FAMILY.value or "")
    mesh = mesh_flags.mesh()
    with jax.set_mesh(mesh):
        policy, params, tokenizer = policy_folder.load_policy(source, mesh, _STEP.value)
    exporter.export_policy(
        output,
        policy.config,
        params,
        tokenizer,
        family=_FAMILY.value or "",
        dtype=_DTYPE.value,
        shard_bytes=int(_SHARD_GB.value * 1e9),
    )
    print(
        f"wrote {layout.count_parameters(params):,} parameters as {_FAMILY.value or policy.config.family} in "
        f"{_DTYPE.value} to {output}"
    )


if __name__ == "__main__":
    cli.run(main)
