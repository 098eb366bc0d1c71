"""Builds a tokenizer from the metadata of a GGUF file, which only names its pre-tokenizer."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from rlvr import errors
from rlvr.text.metadata import Fields
from rlvr.text.tokenizer import BpeTokenizer

# Values of tokenizer.ggml.token_type.
CONTROL, USER_DEFINED = 3, 4


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
        WeightsError: the tokenizer is of another kind than byte-level BPE, its pre-tokenizer is unknown, or a
            key is missing or inconsistent; the message names the key.
    """
    fields = Fields(where, metadata)
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        raise fields.error("tokenizer.ggml.model", "is not supported (accepted: 'gpt2', byte-level BPE)")
    pre = PRE_TOKENIZERS.get(metadata.get("tokenizer.ggml.pre", ""))
    if pre is None:
        raise fields.error(
            "tokenizer.ggml.pre", f"is not a known pre-tokenizer (accepted: {', '.join(PRE_TOKENIZERS)})"
        )
    fields.require("tokenizer.ggml.add_space_prefix", False)
    fields.require("tokenizer.ggml.add_eos_token", False)
    tokens = _strings(fields, "tokenizer.ggml.tokens")
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        repeated = [token for token, count in Counter(tokens).items() if count > 1]
        raise errors.WeightsError(f"{where}: tokenizer.ggml.tokens repeats {repeated[:4]}")
    backend = tokenizers.Tokenizer(_make_model(fields, ids, pre.ignore_merges))
    backend.pre_tokenizer = pre.make()
    backend.decoder = decoders.ByteLevel()
    _add_whole_tokens(backend, fields, tokens)

    def token_id(name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = metadata.get(key)
        if value is not None and (not isinstance(value, int) or not 0 <= value < len(tokens)):
            raise fields.error(key, f"is not one of the {len(tokens)} ids of tokenizer.ggml.tokens")
        return value

    bos_id = token_id("bos")
    if fields.flag("tokenizer.ggml.add_bos_token", pre.add_bos):
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


def _make_model(fields: Fields, ids: Mapping[str, int], ignore_merges: bool) -> models.BPE:
    merges = []
    for line in _strings(fields, "tokenizer.ggml.merges"):
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise errors.WeightsError(
                f"{fields.where}: tokenizer.ggml.merges has {line!r}, expected two tokens and one space"
            )
        merges.append((left, right))
    try:
        return models.BPE(vocab=dict(ids), merges=merges, ignore_merges=ignore_merges)
    except Exception as error:  # the library raises nothing narrower
        raise errors.WeightsError(
            f"{fields.where}: tokenizer.ggml.tokens and tokenizer.ggml.merges do not fit each other ({error})"
        ) from error


def _add_whole_tokens(backend: tokenizers.Tokenizer, fields: Fields, tokens: list[str]) -> None:
    """Marks the tokens that are matched whole: control tokens (special) and user-defined ones (not)."""
    key = "tokenizer.ggml.token_type"
    types = fields.values.get(key)
    if not isinstance(types, list) or len(types) != len(tokens):
        found = len(types) if isinstance(types, list) else "none"
        raise errors.WeightsError(f"{fields.where}: {key} must have {len(tokens)} entries, found {found}")
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [
            tokenizers.AddedToken(token, normalized=False, special=special)
            for token, found in zip(tokens, types, strict=True)
            if found == kind
        ]
        (backend.add_special_tokens if special else backend.add_tokens)(added)


def _strings(fields: Fields, key: str) -> list[str]:
    value = fields.values.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise errors.WeightsError(f"{fields.where}: {key} must be a list of strings, and not empty")
    return value
