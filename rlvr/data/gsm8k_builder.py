"""The TFDS builder of GSM8K. A module of its own because TFDS is imported only where it is used."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds


class Gsm8kRows(tfds.core.GeneratorBasedBuilder):
    """Worked grade-school problems, given as rows {"question", "answer"} per split; rows keep their order."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # else TFDS looks beside this module for checksums, with a package it does not declare

    def __init__(self, *, examples: Mapping[str, Sequence[dict[str, str]]] | None = None, **kwargs: Any):
        """`examples` by split are needed to prepare, and not to read what is prepared."""
        self._examples = examples or {}
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict({"question": text(), "answer": text()}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(rows) for split, rows in self._examples.items()}

    def _generate_examples(self, examples: Sequence[dict[str, str]]) -> Iterator[tuple[int, dict[str, str]]]:
        yield from enumerate(examples)


def prepare(examples: Mapping[str, Sequence[dict[str, str]]], data_dir: Path) -> None:
    """Writes the ArrayRecord files of the examples, by split, under `data_dir`."""
    tfds.disable_progress_bar()  # two seconds of work, and three nested bars
    builder = Gsm8kRows(examples=examples, data_dir=data_dir, file_format="array_record")
    with contextlib.redirect_stdout(sys.stderr):  # TFDS prints that it downloads; stdout is for results
        builder.download_and_prepare()
