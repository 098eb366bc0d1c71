"""Imports pretrained weights into a policy folder that every launcher takes as --checkpoint.

    python -m launch.import_weights --source=SmolLM2-135M-Instruct.Q4_1.gguf --output=weights/smollm2

The source is a .gguf file, a folder that holds one, or a Hugging Face folder (config.json, safetensors,
tokenizer.json). The output is a policy folder; it appears whole or not at all. Parameters go to the devices one after
the other, split as --fsdp, --expert and --tensor say: no device or host need hold all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import cli, mesh_flags
from rlvr import errors, policy_folder
from rlvr.parts import check_mesh
from rlvr.weights import importer, layout

SOURCE = flags.DEFINE_string("source", None, "What to import: a .gguf file or a folder.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "The policy folder to write; may exist if empty.", required=True)


def main(argv: Sequence[str]) -> None:
    """Reads, writes, and says what was read."""
    cli.refuse_arguments(argv)
    output = Path(OUTPUT.value).absolute()
    # Reading takes a while: say at once what writing would refuse at the end.
    errors.check_new_folder(output)
    mesh = mesh_flags.mesh()
    policy = importer.read_weights(Path(SOURCE.value), mesh, lambda config: check_mesh(config, mesh))
    print(
        f"read {layout.count_parameters(policy.params):,} parameters in {policy.config.layers} layers from "
        f"{SOURCE.value} (stored as {', '.join(policy.stored_types)}; read as float32)",
        flush=True,
    )
    policy_folder.save_policy(output, policy.config, policy.params, policy.tokenizer)
    print(f"wrote {output}")


if __name__ == "__main__":
    cli.run(main)
