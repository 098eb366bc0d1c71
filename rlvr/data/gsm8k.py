r"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168) from the two JSONL files of its authors, through TFDS and
ArrayRecord.

Rows are {"question", "answer"}; an answer is a worked solution with calculator marks (<<48/2=24>>) whose last
line is "#### N". The folder is only read. The prepared data lies in `options["cache"]`, by default
`rlvr/tfds` under $XDG_CACHE_HOME or ~/.cache, in a folder named after the SHA-256 of the two files: changed
files are prepared anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlvr import errors, types
from rlvr.data import rows, tasks
from rlvr.data.config import TaskSetConfig, parse_options

_MARK = "####"
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_FILE_OF_SPLIT = {"train": "train", "eval": "test"}


@dataclasses.dataclass(frozen=True)
class Gsm8kOptions:
    """Options of the source "gsm8k".

    Attributes:
        cache: folder of the prepared data; "" means the default one.
    """

    cache: str = ""


def make_gsm8k(config: TaskSetConfig, split: str, field: str) -> tasks.LazyTasks:
    """Returns the tasks of one split, in the order of the file.

    The verifier is "numeric"; the demonstration is the worked solution without its calculator marks, its
    answer line written in the set's answer format.

    Raises:
        ConfigError: an option that is not known, or more problems asked for than there are.
        DataError: a missing, unreadable or empty file, or a malformed row.
    """
    options = parse_options(Gsm8kOptions, config.options, field)
    cache = Path(options.cache).expanduser() if options.cache else get_default_cache()
    source = read_prepared(Path(config.path).expanduser(), cache)[_FILE_OF_SPLIT[split]]
    wanted = config.train_size if split == "train" else config.eval_size
    if wanted > len(source):
        raise errors.ConfigError(
            f"{field}.{split}_size={wanted} is more than there are: {len(source)} in {config.path}"
        )

    def make(i: int) -> types.Task:
        row = source[i]
        solution, number = split_solution(row["answer"].decode())
        demonstration = f"{solution}\n{tasks.render_answer(number, config.answer_format)}"
        return tasks.make_task(config, row["question"].decode(), number, "numeric", demonstration=demonstration)

    return tasks.LazyTasks(wanted or len(source), make)


def split_solution(answer: str) -> tuple[str, str]:
    """Returns (worked solution without calculator marks, final number without commas). Raises ValueError."""
    solution, mark, number = answer.rpartition(_MARK)
    number = number.strip().replace(",", "")
    if not mark or not _NUMBER.fullmatch(number):
        raise ValueError(f"does not end in '{_MARK} N': {rows.shorten(answer[-60:])}")
    return _CALCULATOR.sub("", solution).strip(), number


def get_default_cache() -> Path:
    """Returns the folder of prepared data where no other is given."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rlvr" / "tfds"


def read_prepared(folder: Path, cache: Path) -> dict[str, Sequence[Any]]:
    """Returns the TFDS data sources "train" and "test" of the files in `folder`, preparing them if need be.

    Raises:
        ConfigError: the cache cannot be written.
        DataError: as `make_gsm8k`.
    """
    from rlvr.data import gsm8k_builder  # imports TFDS

    paths = {name: rows.find_file(folder, name) for name in _FILE_OF_SPLIT.values()}
    prepared = cache / f"gsm8k-{_hash_files(paths)[:16]}-v{gsm8k_builder.Gsm8kRows.VERSION}"
    if not prepared.is_dir():
        examples = {name: list(_iter_examples(path)) for name, path in paths.items()}
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _prepare(examples, prepared)
        except OSError as error:
            raise errors.ConfigError(
                f"the cache of prepared data {cache} cannot be written ({error}): set options['cache']"
            ) from error
    builder = gsm8k_builder.Gsm8kRows(data_dir=prepared, file_format="array_record")
    return {name: builder.as_data_source(name) for name in paths}


def _prepare(examples: dict[str, list[dict[str, str]]], prepared: Path) -> None:
    """Prepares into a folder of its own and renames it: whoever comes second finds the first one's whole."""
    from rlvr.data import gsm8k_builder

    own = Path(tempfile.mkdtemp(prefix=f".{prepared.name}-", dir=prepared.parent))
    try:
        gsm8k_builder.prepare(examples, own)
        own.chmod(0o755)  # mkdtemp makes it private; a cache may be shared
        try:
            own.rename(prepared)
        except OSError:
            if not prepared.is_dir():
                raise
    finally:
        shutil.rmtree(own, ignore_errors=True)  # gone already where it was renamed


def _hash_files(paths: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(paths.items()):
        try:
            contents = path.read_bytes()
        except OSError as error:
            raise errors.DataError(f"{path}: cannot be read: {error}") from error
        digest.update(f"{name}\0{path.suffix}\0{len(contents)}\0".encode() + contents)
    return digest.hexdigest()


def _iter_examples(path: Path) -> Iterator[dict[str, str]]:
    for number, row in rows.read_rows(path):
        question = rows.read_text(path, number, row, "question")
        answer = rows.read_text(path, number, row, "answer")
        try:
            split_solution(answer)
        except ValueError as error:
            raise errors.DataError(f"{path}, line {number}: the field 'answer' {error}") from error
        yield {"question": question, "answer": answer}
