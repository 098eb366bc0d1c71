"""From tasks and messages to prompt ids, through the policy's chat template where it has one.

Templates are Jinja text that comes with the weights: they run in Jinja's immutable sandbox, with the names
that Hugging Face's renderer gives them.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from rlvr import errors
from rlvr.text.tokenizer import Tokenizer
from rlvr.types import Task

Message = Mapping[str, Any]


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message] | str) -> list[int]:
    """Returns the ids of a prompt.

    Args:
        tokenizer: the policy's tokenizer.
        messages: a string is raw text, encoded as it is, with what the tokenizer itself puts before a
            document and never through the template; messages ({"role", "content"} each) are rendered by the
            chat template, with the opening of the assistant's turn at the end.

    Raises:
        DataError: messages without a template, a malformed message, a template that fails, or an empty
            prompt.
    """
    raw = isinstance(messages, str)
    text = messages if isinstance(messages, str) else render_messages(tokenizer, messages)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise errors.DataError(
            f"the prompt holds half of a surrogate pair at character {error.start}: {text[:80]!r}"
        ) from error
    # A template writes its own begin-of-sequence token; the tokenizer must not add a second one.
    ids = tokenizer.encode(text, add_special_tokens=raw)
    if not ids:
        raise errors.DataError("the prompt is empty: it must have at least one token")
    return ids


def encode_task(tokenizer: Tokenizer, task: Task, *, hinted: bool = False) -> list[int]:
    """Returns the prompt ids of a task, through the chat template if there is one, else of its plain text.

    Args:
        hinted: whether it is the prompt with privileged information that is wanted.

    Raises:
        DataError: the task has no hint, or a system turn but the tokenizer no template, or see `encode_prompt`.
    """
    if hinted:
        if not task.hinted_prompt:
            raise errors.DataError(
                f"the task of {task.task!r} that begins {task.prompt[:60]!r} has no hint, which distill.hinted or "
                "warm_start.hinted asks for"
            )
        task = dataclasses.replace(task, prompt=task.hinted_prompt)
    if tokenizer.chat_template is not None:
        return encode_prompt(tokenizer, task_messages(task))
    if task.system:
        raise errors.DataError(
            f"task {task.task!r} has a system turn, but the policy's tokenizer has no chat template for it"
        )
    return encode_prompt(tokenizer, task.prompt)


def task_messages(task: Task) -> list[dict[str, str]]:
    """Returns the turns of a task: the system's, if the task has one, and the user's."""
    system = [{"role": "system", "content": task.system}] if task.system else []
    return [*system, {"role": "user", "content": task.prompt}]


def render_messages(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """Returns the text of the messages and of the opening of the assistant's turn; see `encode_prompt`."""
    if tokenizer.chat_template is None:
        raise errors.DataError(
            "messages need a chat template, but the policy's tokenizer has none: give a plain text prompt"
        )
    _check_messages(messages)
    specials = {
        f"{name}_token": "" if i is None else tokenizer.token_text(i)
        for name, i in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("pad", tokenizer.pad_id))
    }
    try:
        return _compile(tokenizer.chat_template).render(
            messages=[dict(message) for message in messages], add_generation_prompt=True, **specials
        )
    # TypeError: a template may apply any operator to what it finds in a message.
    except (jinja2.TemplateError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise errors.DataError(f"the chat template cannot render the turns ({roles}): {error}") from error


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise errors.DataError("messages is empty: at least one turn is needed")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise errors.DataError(f"messages[{index}] is a {type(message).__name__}, expected an object")
        for field in ("role", "content"):
            if not isinstance(message.get(field), str):
                raise errors.DataError(f"messages[{index}].{field}={message.get(field)!r} must be a string")


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # Jinja's own filter escapes HTML, which is not what policies were trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
