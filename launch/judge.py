"""Lets a policy of ours judge the rows of a file, all in one batch, ahead of the command that verifies them:

    python -m launch.judge --checkpoint=DIR --input=rows.jsonl [--judge_samples=N --judge_temperature=T]
    python -m launch.verify --verifier=rubric --judge_model=NAME --input=rows.jsonl --output=verdicts.jsonl ...

The rows are those of the verifier `rubric`. The replies go to the judge's cache, --judge_cache, by content; the last
line is `RESULT {...}` with the NAME under which they stand there, made of the policy's parameters. The second command
takes the same --judge_* flags. Rows that are judged already are not sampled again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from launch import checkpoints, cli, judge_flags
from launch.verdict_files import Input
from rlvr import errors, fingerprint, keys
from rlvr.text.chat import encode_prompt
from rlvr.text.tokenizer import Tokenizer
from rlvr.types import Request
from rlvr.verifiers import judges, rows, rubric

_INPUT = flags.DEFINE_string("input", None, "JSON Lines, plain or .gz.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.", 0, 2**32 - 1)
_SLOTS = flags.DEFINE_integer("slots", 32, "Sequences that decode together.", lower_bound=1)


class _Question(NamedTuple):
    sample: int
    path: Path
    messages: judges.Messages


def find_questions(source: Input, judge: judges.JudgeConfig) -> tuple[list[_Question], int]:
    """Returns what the cache has no reply to, and how many rows ask nothing: bad ones, and those without a response."""
    questions: dict[Path, _Question] = {}
    silent = 0
    for line in source.lines(skip=0):
        try:
            item = rows.parse_item(line.text or b"", "rubric")
            messages = rubric.render_messages(item.completion, item.task.answer, item.task.payload)
        except errors.DataError:  # its verdict will say so
            messages = None
        silent += messages is None
        for sample in range(judge.samples if messages is not None else 0):
            assert messages is not None
            path = judges.cache_path(judge, sample, messages)
            if path is None:
                raise errors.ConfigError("--judge_cache='' keeps no replies (accepted: a folder)")
            if not path.exists():
                questions[path] = _Question(sample, path, messages)
    return list(questions.values()), silent


def encode_question(tokenizer: Tokenizer, messages: judges.Messages) -> tuple[int, ...]:
    """Returns the prompt ids: by the chat template, or as plain text where there is none."""
    if tokenizer.chat_template is None:
        return tuple(encode_prompt(tokenizer, "\n\n".join(message["content"] for message in messages) + "\n\n"))
    return tuple(encode_prompt(tokenizer, messages))


def main(argv: Sequence[str]) -> None:
    """Samples a reply to every question that has none yet."""
    cli.refuse_arguments(argv)
    source = Input(Path(_INPUT.value))
    with checkpoints.loaded() as (loaded, mesh):
        model = f"policy-{fingerprint.hash_params(loaded.params)[:16]}-{_SEED.value}"
        judge = judge_flags.read_judge("", model)
        judge.validate()
        questions, silent = find_questions(source, judge)
        prompts = [encode_question(loaded.tokenizer, question.messages) for question in questions]
        if questions:
            longest = max(len(prompt) for prompt in prompts)
            engine = checkpoints.make_engine(loaded, mesh, longest, judge.max_tokens, _SLOTS.value)
            # A question's key is its content, so that its reply does not depend on what else is in the file.
            requests = [
                Request(i, int(question.path.name[:8], 16), question.sample, prompt)
                for i, (question, prompt) in enumerate(zip(questions, prompts, strict=True))
            ]
            completions = engine.generate(
                loaded.params, requests, keys.make_key(_SEED.value, "sample"), temperature=judge.temperature
            )
            for question, completion in zip(questions, completions, strict=True):
                judges.write_reply(question.path, loaded.tokenizer.decode(completion.tokens.tolist()))
    cli.print_result(
        {"judge_model": model, "rows": source.rows, "rows_without_question": silent, "sampled": len(questions)}
    )


if __name__ == "__main__":
    cli.run(main)
