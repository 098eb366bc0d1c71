"""What the workdir of a run with adapters says about the policy they adapt: `lora.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from rlvr import errors, fingerprint
from rlvr.policy.lora import LoraConfig

FILE = "lora.json"


class Adaptation(NamedTuple):
    """Adapters are nothing without the parameters that they were trained beside.

    Attributes:
        lora: which adapters there are.
        base: the policy folder or workdir of the frozen parameters, as an absolute path.
        base_sha256: of those parameters (`rlvr.fingerprint.hash_params`).
    """

    lora: LoraConfig
    base: str
    base_sha256: str


def write(folder: Path, adaptation: Adaptation) -> None:
    """Writes `lora.json` into a run's workdir.

    Raises:
        WeightsError: steps of the run were trained beside other parameters.
    """
    found = read(folder)
    if found is not None and (folder / "metrics.jsonl").exists():
        check_hash(folder, found, adaptation.base_sha256)
    fields = {"base": adaptation.base, "base_sha256": adaptation.base_sha256, "lora": vars(adaptation.lora)}
    (folder / FILE).write_text(json.dumps(fields, indent=2) + "\n")


def read(folder: Path) -> Adaptation | None:
    """Reads `lora.json`; None where there is none, which is to say where no parameters are adapters.

    Raises:
        WeightsError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_text())
        config: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields["lora"].items()}
        return Adaptation(LoraConfig(**config), str(fields["base"]), str(fields["base_sha256"]))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise errors.WeightsError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def check_base(folder: Path, adaptation: Adaptation, base: Any) -> None:
    """Raises WeightsError unless `base` holds the parameters that the adapters of the workdir were trained beside."""
    check_hash(folder, adaptation, fingerprint.hash_params(base))


def check_hash(folder: Path, adaptation: Adaptation, sha256: str) -> None:
    """The same, given the hash of the parameters."""
    if sha256 != adaptation.base_sha256:
        raise errors.WeightsError(
            f"the adapters in {folder} were trained beside other parameters than {adaptation.base} holds now: "
            f"their sha256 was {adaptation.base_sha256[:16]}..., it is {sha256[:16]}.... "
            f"Put the policy of that time back, or write where it is into {folder / FILE}"
        )
