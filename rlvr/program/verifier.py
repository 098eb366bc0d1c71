"""The verifier `exact` as a JAX function of the tokens of a byte policy (`rlvr.text.tokenizer.ByteTokenizer`).

It agrees with the host's `rlvr.verifiers.plain.verify_exact`, under the answer format "bare", on every sequence of
token ids, for references of printable ASCII without white space. What the host does there, and how it is done here:

    decoding drops ids of 256 and more        they are taken out
    the answer is what follows the last       so it is here; where <think> is in it, or it is blank, it is none:
      </think>, if no <think> is in it          "unparsed"
    white space around it does not count      the bytes of UTF-8 white space, which are found without decoding: a lead
                                                byte begins a new character whatever is before it
    normal form C, then equality              no other text has an ASCII text for its normal form
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_OPEN, _CLOSE = b"<think>", b"</think>"
_BYTES = 256
_ONE = (*range(9, 14), *range(28, 33))  # white space of one byte
_TWO = ((0xC2, 0x85), (0xC2, 0xA0))
_THREE = (
    (0xE1, 0x9A, 0x80),
    *((0xE2, 0x80, last) for last in (*range(0x80, 0x8B), 0xA8, 0xA9, 0xAF)),
    (0xE2, 0x81, 0x9F),
    (0xE3, 0x80, 0x80),
)


class Verdicts(NamedTuple):
    """Verdicts on B completions, [B] bool: those that are neither are wrong."""

    correct: jax.Array
    unparsed: jax.Array


def verify_exact(tokens: jax.Array, lengths: jax.Array, answers: jax.Array) -> Verdicts:
    """Judges completions.

    Args:
        tokens: [B, C] int32 ids; garbage past the end.
        lengths: [B] int32.
        answers: [B, A] int32 bytes of the references, -1 past the end, A > C or as many as the longest.
    """
    text = _decode(tokens, lengths)
    start = _end_of_last(text, _CLOSE)
    place = jnp.arange(text.shape[1])[None, :]
    behind = (place >= start[:, None]) & (text >= 0)
    opened = jnp.any(_find(text, _OPEN) & behind, axis=1)
    marks = behind & ~_is_space(text)
    first = jnp.argmax(marks, axis=1)
    last = text.shape[1] - 1 - jnp.argmax(marks[:, ::-1], axis=1)
    blank = ~jnp.any(marks, axis=1)
    width = answers.shape[1]
    padded = jnp.pad(text, ((0, 0), (0, width)), constant_values=-1)
    found = jnp.take_along_axis(padded, first[:, None] + jnp.arange(width)[None, :], axis=1)
    size = (last - first + 1)[:, None]
    found = jnp.where(jnp.arange(width)[None, :] < size, found, -1)
    same = jnp.all(found == answers, axis=1) & (size[:, 0] <= width)
    unparsed = blank | opened
    return Verdicts(same & ~unparsed, unparsed)


def _decode(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Returns the bytes of completions, side by side: [B, C] int32, -1 past the end."""
    length = tokens.shape[1]
    kept = (tokens < _BYTES) & (jnp.arange(length)[None, :] < lengths[:, None])
    target = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, length)
    put = target[:, :, None] == jnp.arange(length)[None, None, :]
    return jnp.sum(jnp.where(put, tokens[:, :, None] + 1, 0), axis=1) - 1


def _shift(text: jax.Array, by: int) -> jax.Array:
    """Moves the bytes `by` places to the front, or to the back if negative."""
    length = text.shape[1]
    widths = (max(-by, 0), max(by, 0))
    return jnp.pad(text, ((0, 0), widths), constant_values=-1)[:, widths[1] : widths[1] + length]


def _find(text: jax.Array, pattern: bytes) -> jax.Array:
    """Returns where a pattern begins: [B, C] bool."""
    found = jnp.ones(text.shape, bool)
    for i, byte in enumerate(pattern):
        found &= _shift(text, i) == byte
    return found


def _end_of_last(text: jax.Array, pattern: bytes) -> jax.Array:
    """Returns where the last occurrence of a pattern ends, 0 if there is none: [B]."""
    found = _find(text, pattern)
    last = text.shape[1] - 1 - jnp.argmax(found[:, ::-1], axis=1)
    return jnp.where(jnp.any(found, axis=1), last + len(pattern), 0)


def _is_space(text: jax.Array) -> jax.Array:
    """Returns which bytes are part of a white space character: [B, C] bool."""
    space = jnp.isin(text, jnp.array(_ONE))
    for character in (*_TWO, *_THREE):
        begins = _find(text, bytes(character)).astype(jnp.int32)
        for i in range(len(character)):
            space |= _shift(begins, -i) > 0
    return space
