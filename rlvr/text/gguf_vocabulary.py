"""Builds a tokenizer from the metadata of a GGUF file.

Two kinds: byte-level BPE ("gpt2"), whose pre-tokenizer the file only names, and SentencePiece's BPE ("llama"), which
lists no merges: of the neighbours that join to a piece, those that make the piece of the highest score come first.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from rlvr import errors
from rlvr.text.metadata import Fields
from rlvr.text.tokenizer import BpeTokenizer

# Values of tokenizer.ggml.token_type.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

SPACE = "\u2581"  # how SentencePiece spells a space
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before merging.

    Attributes:
        make: makes the library's pre-tokenizer.
        ignore_merges: whether a piece that is a token as a whole is taken without applying merges.
        add_bos: whether a document begins with a bos token where the file does not say.
    """

    make: Callable[[], pre_tokenizers.PreTokenizer]
    ignore_merges: bool
    add_bos: bool


def _make_smollm() -> pre_tokenizers.PreTokenizer:
    """Every digit alone, then the pattern of GPT-2."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _make_llama3() -> pre_tokenizers.PreTokenizer:
    """The pattern published with Llama 3: digits in groups of up to three, case-insensitive contractions."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# Keyed by tokenizer.ggml.pre.
PRE_TOKENIZERS = {
    "smollm": PreTokenizer(_make_smollm, ignore_merges=False, add_bos=False),
    "llama-bpe": PreTokenizer(_make_llama3, ignore_merges=True, add_bos=True),
}


def make_tokenizer(metadata: Mapping[str, Any], where: str) -> BpeTokenizer:
    """Builds the tokenizer that a GGUF file describes.

    Args:
        metadata: keys and values of the file.
        where: the file, for messages.

    Raises:
        WeightsError: the tokenizer or its pre-tokenizer is of an unknown kind, or a key is missing or
            inconsistent; the message names the key.
    """
    fields = Fields(where, metadata)
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in KINDS:
        raise fields.error("tokenizer.ggml.model", f"is not supported (accepted: {', '.join(KINDS)})")
    fields.require("tokenizer.ggml.add_eos_token", False)
    tokens = _strings(fields, "tokenizer.ggml.tokens")
    if len(set(tokens)) != len(tokens):
        repeated = [token for token, count in Counter(tokens).items() if count > 1]
        raise errors.WeightsError(f"{where}: tokenizer.ggml.tokens repeats {repeated[:4]}")
    backend, add_bos = KINDS[kind](fields, tokens)

    def token_id(name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = metadata.get(key)
        if value is not None and (not isinstance(value, int) or not 0 <= value < len(tokens)):
            raise fields.error(key, f"is not one of the {len(tokens)} ids of tokenizer.ggml.tokens")
        return value

    bos_id = token_id("bos")
    if fields.flag("tokenizer.ggml.add_bos_token", add_bos):
        if bos_id is None:
            raise errors.WeightsError(f"{where}: tokenizer.ggml.add_bos_token is set but bos_token_id is missing")
        backend.post_processor = processors.TemplateProcessing(
            single=[tokens[bos_id], "$A"], special_tokens=[(tokens[bos_id], bos_id)]
        )
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise fields.error("tokenizer.chat_template", "must be a string")
    stops = (token_id("eos"), token_id("eot"), token_id("eom"))
    return BpeTokenizer(
        backend,
        bos_id=bos_id,
        eos_id=token_id("eos"),
        pad_id=token_id("padding"),
        stop_ids=[i for i in stops if i is not None],
        chat_template=template,
        where=where,
    )


def _make_byte_level(fields: Fields, tokens: list[str]) -> tuple[tokenizers.Tokenizer, bool]:
    """Returns byte-level BPE, and whether a document begins with bos where the file does not say."""
    pre = PRE_TOKENIZERS.get(fields.values.get("tokenizer.ggml.pre", ""))
    if pre is None:
        raise fields.error(
            "tokenizer.ggml.pre", f"is not a known pre-tokenizer (accepted: {', '.join(PRE_TOKENIZERS)})"
        )
    fields.require("tokenizer.ggml.add_space_prefix", False)
    merges = []
    for line in _strings(fields, "tokenizer.ggml.merges"):
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise errors.WeightsError(
                f"{fields.where}: tokenizer.ggml.merges has {line!r}, expected two tokens and one space"
            )
        merges.append((left, right))
    ids = {token: i for i, token in enumerate(tokens)}
    try:
        model = models.BPE(vocab=ids, merges=merges, ignore_merges=pre.ignore_merges)
    except Exception as error:  # the library raises nothing narrower
        raise errors.WeightsError(
            f"{fields.where}: tokenizer.ggml.tokens and tokenizer.ggml.merges do not fit each other ({error})"
        ) from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre.make()
    backend.decoder = decoders.ByteLevel()
    types = _list(fields, "tokenizer.ggml.token_type", len(tokens), int)
    _add_whole_tokens(backend, tokens, types, normalized=False)
    return backend, pre.add_bos


def _make_sentencepiece(fields: Fields, tokens: list[str]) -> tuple[tokenizers.Tokenizer, bool]:
    """Returns SentencePiece's BPE with byte fallback, and whether a document begins with bos where the file is silent.

    Kudo and Richardson, 1808.06226; the library's `bpe_model.cc` for the order of merges.
    """
    # Llama 2's and others: absent means true there.
    if fields.values.get("tokenizer.ggml.add_space_prefix") is not False:
        raise fields.error("tokenizer.ggml.add_space_prefix", "is not supported (accepted: False)")
    fields.require("tokenizer.ggml.remove_extra_whitespaces", False)
    fields.require("tokenizer.ggml.precompiled_charsmap")
    types = _list(fields, "tokenizer.ggml.token_type", len(tokens), int)
    scores = _list(fields, "tokenizer.ggml.scores", len(tokens), float)
    # The file spells the spaces of user-defined tokens as they are.
    tokens = [t.replace(" ", SPACE) if kind == USER_DEFINED else t for t, kind in zip(tokens, types, strict=True)]
    ids = {token: i for i, token in enumerate(tokens)}
    missing = [token for token in BYTES if token not in ids]
    if missing:
        raise errors.WeightsError(
            f"{fields.where}: tokenizer.ggml.tokens lacks {len(missing)} of the 256 byte tokens: {missing[:4]}"
        )
    pieces = {token: i for token, i in ids.items() if types[i] == NORMAL}
    merges = _order_merges(pieces, scores)
    backend = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    # User-defined tokens are cut out of the text after the normalizer, the longest first, as SentencePiece does.
    _add_whole_tokens(backend, tokens, types, normalized=True)
    return backend, True


# Keyed by tokenizer.ggml.model.
KINDS = {"gpt2": _make_byte_level, "llama": _make_sentencepiece}


def _order_merges(pieces: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Returns every pair of pieces that joins to a piece, those of the highest score first.

    Only pairs of ordinary pieces: the others are cut out of the text before anything is merged.
    """
    merges = []
    for piece, i in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                merges.append((-scores[i], i, -cut, left, right))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _add_whole_tokens(
    backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int], *, normalized: bool
) -> None:
    """Marks the tokens that are matched whole: control tokens (special) and user-defined ones (not).

    Control tokens are looked for in the text as it is, user-defined ones in the normalized text if `normalized`.
    """
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [
            tokenizers.AddedToken(token, normalized=normalized and not special, special=special)
            for token, found in zip(tokens, types, strict=True)
            if found == kind
        ]
        (backend.add_special_tokens if special else backend.add_tokens)(added)


def _list(fields: Fields, key: str, length: int, of: type[int] | type[float]) -> list[Any]:
    """Returns a list of `length` finite numbers of a type."""
    value = fields.values.get(key)
    if not isinstance(value, list) or len(value) != length:
        found = len(value) if isinstance(value, list) else "none"
        raise errors.WeightsError(f"{fields.where}: {key} must have {length} entries, found {found}")
    if not all(isinstance(entry, of) and math.isfinite(entry) for entry in value):
        raise errors.WeightsError(f"{fields.where}: {key} must hold finite numbers of the type {of.__name__}")
    return value


def _strings(fields: Fields, key: str) -> list[str]:
    value = fields.values.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise errors.WeightsError(f"{fields.where}: {key} must be a list of strings, and not empty")
    return value
