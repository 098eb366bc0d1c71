"""Exports the adapters of a LoRA run to a folder that PEFT loads.

    python -m launch.export_adapter --checkpoint=runs/smollm2_lora --output=adapter --base=exported

The checkpoint is the run's workdir (its newest checkpoint, or --step). --base is what adapter_config.json names as the
base model: the policy that the run started from, as launch/export_weights.py wrote it or as a hub has it. The policy
with the adapters merged is written by launch/export_weights.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import cli
from rlvr import adaptation, errors, policy_folder
from rlvr.weights import families, layout, peft

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The workdir of a run with adapters.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write; may exist if empty.", required=True)
_BASE = flags.DEFINE_string("base", "", "Base model to name: a folder or a hub's name; default: none.")
_FAMILY = flags.DEFINE_enum(
    "family", None, list(families.FAMILIES), "Architecture of the base model; default: the one the weights came from."
)
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; default: the newest.", lower_bound=0)


def main(argv: Sequence[str]) -> None:
    """Reads, writes, and says what was written."""
    cli.refuse_arguments(argv)
    output, workdir = Path(_OUTPUT.value).absolute(), Path(_CHECKPOINT.value)
    errors.check_new_folder(output)
    config = policy_folder.read_policy_config(workdir)
    adapted = adaptation.read(workdir)
    if adapted is None:
        raise errors.WeightsError(
            f"{workdir} holds no adapters: {adaptation.FILE} is missing (whole policies: launch/export_weights.py)"
        )
    adapters = policy_folder.load_adapters(workdir, adapted, config, None, _STEP.value)
    peft.export_adapters(output, config, adapted.lora, adapters, family=_FAMILY.value or "", base=_BASE.value)
    print(f"wrote adapters of {layout.count_parameters(adapters):,} parameters, of {adapted.base}, to {output}")


if __name__ == "__main__":
    cli.run(main)
