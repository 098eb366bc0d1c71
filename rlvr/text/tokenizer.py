"""Tokenizers: text to ids and back. Two kinds: plain bytes, and byte-pair encoding of a pretrained policy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from rlvr import errors
from rlvr.text.metadata import read_json

BYTE_FILE = "byte_tokenizer.json"
BPE_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
GENERATION_FILE = "generation_config.json"
TEMPLATE_FILE = "chat_template.jinja"

# Tokens that end a turn or a document wherever they exist as special tokens, whatever the metadata declares:
# instruction-tuned policies declare one of them and emit the other too.
STOP_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>")


class Tokenizer(Protocol):
    """What the rest of the project asks of a tokenizer.

    Attributes:
        vocab_size: one more than the largest id; the V of a policy may be larger.
        pad_id: fills rows; it may also be a real token, so padding is known by masks, never by this id.
        bos_id, eos_id: begin and end of sequence; None where there is none.
        stop_ids: the ids that end a completion, at least one.
        chat_template: a Jinja template, or None.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    @property
    def chat_template(self) -> str | None: ...

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Returns the ids of a text; special tokens written in it become their ids.

        With `add_special_tokens`, what the tokenizer puts around a document (such as a begin-of-sequence
        token) is added; without, the ids of the text alone are returned.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids; special tokens are left out, invalid UTF-8 becomes U+FFFD."""
        ...

    def token_text(self, token_id: int) -> str:
        """Returns the spelling of one id, special tokens included."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what `load_tokenizer` reads into `folder`, which is made if needed."""
        ...


class ByteTokenizer:
    """One id per byte of UTF-8, then bos 256, eos 257, pad 258.

    Ids 259 to 263 are reserved: 264 is a multiple of 8, so that embedding table and head divide over a mesh.
    """

    vocab_size = 264
    bos_id = 256
    eos_id = 257
    pad_id = 258
    stop_ids = (257,)
    chat_template = None

    _NAMES: Mapping[int, str] = {256: "<bos>", 257: "<eos>", 258: "<pad>"}

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """See `Tokenizer`; no text spells a special token, and none is added."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def token_text(self, token_id: int) -> str:
        """See `Tokenizer`."""
        if token_id < 256:
            return bytes([token_id]).decode("utf-8", errors="replace")
        return self._NAMES.get(token_id, f"<reserved_{token_id}>")

    def save(self, folder: Path) -> None:
        """See `Tokenizer`."""
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / BYTE_FILE, {"kind": "byte", "vocab_size": self.vocab_size})


class BpeTokenizer:
    """Byte-pair encoding, run by the `tokenizers` library.

    Args:
        backend: the library's tokenizer.
        bos_id, eos_id, pad_id: None where there is none; padding then uses the first stop token.
        stop_ids: declared stop tokens, in order; eos and those of `STOP_TOKENS` that are special are added.
        chat_template: a Jinja template, or None.
        where: the file it came from, for messages.

    Raises:
        WeightsError: an id is outside the vocabulary, or there is nothing to stop at.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_id: int | None,
        eos_id: int | None,
        pad_id: int | None,
        stop_ids: Iterable[int],
        chat_template: str | None,
        where: str,
    ):
        self._backend = backend
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.chat_template = chat_template
        special = {t.content: i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        stops = [*stop_ids, *([] if eos_id is None else [eos_id])]
        stops += [special[name] for name in STOP_TOKENS if name in special]
        self.stop_ids = tuple(dict.fromkeys(stops))
        if not self.stop_ids:
            raise errors.WeightsError(
                f"{where}: no end-of-sequence token: neither eos_token, eos_token_id nor one of "
                f"{', '.join(STOP_TOKENS)} is there"
            )
        self.pad_id = self.stop_ids[0] if pad_id is None else pad_id
        for name, value in (*(("stop", i) for i in self.stop_ids), ("bos", bos_id), ("pad", self.pad_id)):
            if value is not None and not 0 <= value < self.vocab_size:
                raise errors.WeightsError(
                    f"{where}: the {name} token id {value} is outside the vocabulary of {self.vocab_size} ids"
                )

    @classmethod
    def from_folder(cls, folder: Path) -> BpeTokenizer:
        """Reads a Hugging Face folder: tokenizer.json, and what is there of the files beside it.

        Raises:
            WeightsError: a file is missing or corrupt, or names a token that the vocabulary lacks.
        """
        file = folder / BPE_FILE
        if not file.is_file():
            raise errors.WeightsError(f"{file}: the file is missing")
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise errors.WeightsError(f"{file}: not a tokenizer ({error})") from error
        backend.no_padding()
        backend.no_truncation()
        config, config_file = _read_optional(folder, CONFIG_FILE)
        special, special_file = _read_optional(folder, SPECIAL_FILE)
        generation, generation_file = _read_optional(folder, GENERATION_FILE)

        def named_id(field: str) -> int | None:
            for values, where in ((config, config_file), (special, special_file)):
                if values.get(field) is not None:
                    return _token_id(backend, values[field], field, where)
            return None

        return cls(
            backend,
            bos_id=named_id("bos_token"),
            eos_id=named_id("eos_token"),
            pad_id=named_id("pad_token"),
            stop_ids=_id_list(generation.get("eos_token_id"), generation_file),
            chat_template=_read_template(folder, config, config_file),
            where=str(folder),
        )

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """See `Tokenizer`. Bytes that the vocabulary lacks are dropped, as the reference does."""
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`; ids beyond the vocabulary are left out."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_text(self, token_id: int) -> str:
        """See `Tokenizer`."""
        name = self._backend.id_to_token(int(token_id))
        return f"<unused_{token_id}>" if name is None else name

    def save(self, folder: Path) -> None:
        """See `Tokenizer`. The files are those of a Hugging Face folder, which other tools can read too."""
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / BPE_FILE))
        names = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        config = {field: self.token_text(i) for field, i in names.items() if i is not None}
        _write_json(
            folder / CONFIG_FILE,
            {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config},
        )
        _write_json(folder / GENERATION_FILE, {"eos_token_id": list(self.stop_ids)})
        if self.chat_template is not None:
            (folder / TEMPLATE_FILE).write_text(self.chat_template, encoding="utf-8", newline="")


def is_same_vocabulary(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether the same ids spell the same tokens, and the same ones end a completion."""
    if (a.vocab_size, set(a.stop_ids)) != (b.vocab_size, set(b.stop_ids)):
        return False
    return all(a.token_text(i) == b.token_text(i) for i in range(a.vocab_size))


def check_stop_strings(tokenizer: Tokenizer, stop_strings: Iterable[str], field: str) -> None:
    """Raises ConfigError for a stop string with a special token: decoded text has none, it would never match."""
    for text in stop_strings:
        for token in tokenizer.encode(text):
            name = tokenizer.token_text(token)
            if name in text and not tokenizer.decode([token]):
                hint = ", and ends a completion already" if token in tokenizer.stop_ids else ""
                raise errors.ConfigError(
                    f"{field}={text!r} holds the special token {name!r}, which stands in no completion's text{hint} "
                    "(accepted: ordinary text)"
                )


def load_tokenizer(folder: Path) -> Tokenizer:
    """Reads what `save` wrote, or the tokenizer of a Hugging Face folder.

    Raises:
        WeightsError: a file is missing or corrupt; the message names it.
    """
    if not folder.is_dir():
        raise errors.WeightsError(f"{folder}: no such tokenizer folder")
    if not (folder / BYTE_FILE).exists():
        return BpeTokenizer.from_folder(folder)
    expected = {"kind": "byte", "vocab_size": ByteTokenizer.vocab_size}
    found = read_json(folder / BYTE_FILE)
    if found != expected:
        raise errors.WeightsError(f"{folder / BYTE_FILE}: holds {found}, expected {expected}")
    return ByteTokenizer()


def _read_optional(folder: Path, name: str) -> tuple[dict[str, Any], str]:
    file = folder / name
    return (read_json(file) if file.exists() else {}), str(file)


def _token_id(backend: tokenizers.Tokenizer, token: Any, field: str, where: str) -> int:
    """Returns the id of a token given as its text or as {"content": text}."""
    content = token.get("content") if isinstance(token, dict) else token
    found = backend.token_to_id(content) if isinstance(content, str) else None
    if found is None:
        raise errors.WeightsError(f"{where}: {field}={token!r} is not in the vocabulary of {BPE_FILE}")
    return found


def _id_list(value: Any, where: str) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise errors.WeightsError(f"{where}: eos_token_id={value!r} must be an integer or a list of integers")
    return ids


def _read_template(folder: Path, config: Mapping[str, Any], where: str) -> str | None:
    """Returns the template of a file of its own, else the config's (of several, the one named "default")."""
    file = folder / TEMPLATE_FILE
    if file.exists():
        try:
            # Through bytes: universal newlines would change a template that holds \r\n.
            return file.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise errors.WeightsError(f"{file}: cannot be read as UTF-8 text ({error})") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        by_name = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = by_name.get("default")
        if template is None:
            raise errors.WeightsError(
                f"{where}: chat_template holds several templates, none of them named 'default' "
                f"(found: {', '.join(map(repr, by_name))})"
            )
    if template is not None and not isinstance(template, str):
        raise errors.WeightsError(f"{where}: chat_template is a {type(template).__name__}, expected a string")
    return template


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
