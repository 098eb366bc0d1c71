"""Samples a policy: python -m launch.sample --checkpoint=DIR --prompts=rows.jsonl --output=out.jsonl.

A row is {"prompt": text}, taken as it is, or {"messages": [{"role", "content"}, ...]}, put through the chat
template. Each row gives --n rows, in order, with its own fields and: sample, text, tokens (ids, the stop token
included), logprobs (of each id, under the distribution sampled from), stop_reason ("stop" or "length").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch import checkpoints, cli
from rlvr import errors, keys
from rlvr.data.rows import read_rows, shorten
from rlvr.text.chat import encode_prompt
from rlvr.text.tokenizer import Tokenizer, check_stop_strings
from rlvr.types import Request

_PROMPTS = flags.DEFINE_string("prompts", None, "JSON Lines of prompts.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "JSON Lines of completions.", required=True)
_N = flags.DEFINE_integer("n", 1, "Samples of each prompt.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of the sampling; 0 is greedy.", lower_bound=0.0)
_TOP_K = flags.DEFINE_integer("top_k", 0, "Only the k most probable tokens; 0 for all.", lower_bound=0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Only the most probable tokens that have this probability together.")
_MIN_P = flags.DEFINE_float("min_p", 0.0, "Only tokens at least this much as probable as the most probable.")
_STOP = flags.DEFINE_multi_string("stop", [], "A text that ends a completion; may be given several times.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 256, "Longest completion, in tokens.", lower_bound=1)
_SEED = flags.DEFINE_integer(
    "seed",
    0,
    "A row's samples depend on it and on the row's number, not on other rows; with other --slots the last bits of "
    "their log-probs may differ.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
_SLOTS = flags.DEFINE_integer("slots", 32, "Sequences that decode together.", lower_bound=1)


def encode_row(tokenizer: Tokenizer, row: dict[str, Any], number: int) -> tuple[int, ...]:
    """Returns the prompt ids of a row."""
    given = [name for name in ("prompt", "messages") if name in row]
    if len(given) != 1:
        raise errors.DataError(f"row {number} has {given or 'neither field'}; accepted: one of prompt, messages")
    (field,) = given
    wanted, words = {"prompt": (str, "a text"), "messages": (list, "a list of turns")}[field]
    if not isinstance(row[field], wanted):
        raise errors.DataError(f"row {number}: {field}={shorten(row[field])} must be {words}")
    try:
        return tuple(encode_prompt(tokenizer, row[field]))
    except errors.DataError as error:
        raise errors.DataError(f"row {number}: {error}") from error


def check_lengths(prompts: Sequence[Sequence[int]], max_tokens: int, limit: int) -> None:
    """Raises DataError naming the first row whose sequence may be longer than the context, 0 being no limit."""
    for number, prompt in enumerate(prompts, 1):
        if limit and len(prompt) + max_tokens > limit:
            raise errors.DataError(
                f"row {number}: its prompt of {len(prompt)} tokens and --max_tokens={max_tokens} are together longer "
                f"than policy.context_length={limit}, which the weights were made for"
            )


def main(argv: Sequence[str]) -> None:
    """Samples every row."""
    cli.refuse_arguments(argv)
    rows = [row for _, row in read_rows(Path(_PROMPTS.value))]
    errors.check_temperature("--temperature", _TEMPERATURE.value)
    checkpoints.check_output("output", Path(_OUTPUT.value))
    with checkpoints.loaded() as (loaded, mesh):
        check_stop_strings(loaded.tokenizer, _STOP.value, "--stop")
        prompts = [encode_row(loaded.tokenizer, row, i) for i, row in enumerate(rows, 1)]
        check_lengths(prompts, _MAX_TOKENS.value, loaded.policy.config.context_length)
        longest = max(map(len, prompts))
        engine = checkpoints.make_engine(loaded, mesh, longest, _MAX_TOKENS.value, _SLOTS.value, _STOP.value)
        requests = [
            Request(i * _N.value + s, i, s, prompt) for i, prompt in enumerate(prompts) for s in range(_N.value)
        ]
        key = keys.make_key(_SEED.value, "sample")
        completions = engine.generate(
            loaded.params,
            requests,
            key,
            temperature=_TEMPERATURE.value,
            top_k=_TOP_K.value,
            top_p=_TOP_P.value,
            min_p=_MIN_P.value,
        )
    checkpoints.write_rows(
        "output",
        Path(_OUTPUT.value),
        (
            {
                **rows[c.request.prompt_id],
                "sample": c.request.sample,
                "text": loaded.tokenizer.decode(c.tokens.tolist()),
                "tokens": c.tokens.tolist(),
                "logprobs": c.logprobs.tolist(),
                "stop_reason": c.stop_reason,
            }
            for c in completions
        ),
    )
    print(f"wrote {len(completions)} completions of {len(rows)} prompts to {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main)
