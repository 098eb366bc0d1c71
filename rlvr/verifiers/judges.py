"""Asking a language model: an OpenAI-compatible endpoint, and a cache of its replies by content.

The settings reach a worker in its environment (`JUDGE_VARIABLE`), and the key, if there is one, under its own name:
neither is ever in a row, on a command line or in a message.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import http.client
import json
import os
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rlvr import errors

T = TypeVar("T")
Messages = Sequence[Mapping[str, str]]

JUDGE_VARIABLE = "RLVR_JUDGE"
# Of the time that an item has, what the judge may take: the rest is for saying that it took too long.
_SHARE_OF_LIMIT = 0.9
_LARGEST_REPLY = 2**20  # bytes
_FIRST_PAUSE_S = 0.25  # doubled from attempt to attempt
_RETRIED = frozenset((408, 409, 425, 429, 500, 502, 503, 504))


class JudgeError(RuntimeError):
    """No usable reply: nothing is known of the completion."""


@dataclasses.dataclass
class JudgeConfig:
    """Who judges, for `rubric`.

    Attributes:
        url: base of an OpenAI-compatible endpoint, e.g. "http://localhost:8000/v1". "": the replies are in the cache
            already, sampled by `launch.judge`.
        model: the model's name there.
        key_variable: name of the environment variable that holds the key; "" sends none.
        samples: replies to ask for; their scores are averaged.
        temperature: of each.
        max_tokens: longest reply.
        attempts: how often a reply that fails, or cannot be parsed, is asked for.
        cache: folder of replies by content; "" keeps none.
    """

    url: str = ""
    model: str = ""
    key_variable: str = ""
    samples: int = 1
    temperature: float = 0.0
    max_tokens: int = 1024
    attempts: int = 3
    cache: str = "~/.cache/rlvr/judge"

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        if self.url:
            parts = urllib.parse.urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
                raise errors.ConfigError(
                    f'verifiers.judge.url={self.url!r} cannot be used (accepted: "http://host:port/v1", https, or "")'
                )
            if not self.model:
                raise errors.ConfigError("verifiers.judge.model='' (accepted: the name of a model at judge.url)")
        errors.check_between("verifiers.judge.samples", self.samples, 1, 64)
        errors.check_between("verifiers.judge.temperature", self.temperature, 0, 2)
        errors.check_between("verifiers.judge.max_tokens", self.max_tokens, 1, 2**20)
        errors.check_between("verifiers.judge.attempts", self.attempts, 1, 20)

    def environment(self, timeout_s: float) -> dict[str, str]:
        """Returns what a worker needs to ask this judge, within items of `timeout_s` seconds.

        Raises:
            ConfigError: the variable that should hold the key does not exist.
        """
        settings = {**dataclasses.asdict(self), "limit_s": _SHARE_OF_LIMIT * timeout_s}
        environment = {JUDGE_VARIABLE: json.dumps(settings)}
        if self.key_variable:
            if self.key_variable not in os.environ:
                raise errors.ConfigError(
                    f"verifiers.judge.key_variable={self.key_variable!r} is not in the environment"
                )
            environment[self.key_variable] = os.environ[self.key_variable]
        return environment


def load_judge() -> tuple[JudgeConfig, float]:
    """Returns the judge of this worker and the seconds it may take. Raises JudgeError where there is none."""
    if JUDGE_VARIABLE not in os.environ:
        raise JudgeError("no judge is configured (verifiers.judge)")
    settings = json.loads(os.environ[JUDGE_VARIABLE])
    return JudgeConfig(**{k: v for k, v in settings.items() if k != "limit_s"}), settings["limit_s"]


def ask(judge: JudgeConfig, limit_s: float, messages: Messages, parse: Callable[[str], T]) -> list[T]:
    """Returns what `parse` makes of each of the judge's samples.

    Args:
        judge: see `JudgeConfig`.
        limit_s: seconds that all of it may take.
        messages: the conversation.
        parse: raises ValueError where a reply is not what was asked for.

    Raises:
        JudgeError: a sample has no usable reply in time.
    """
    deadline = time.monotonic() + limit_s
    # Threads, because a name look-up or a reply that drips has no time limit of its own. What hangs dies with the
    # worker.
    pool = concurrent.futures.ThreadPoolExecutor(judge.samples)
    try:
        waiting = [pool.submit(_ask_once, judge, i, messages, parse, deadline) for i in range(judge.samples)]
        done, _ = concurrent.futures.wait(waiting, limit_s, concurrent.futures.FIRST_EXCEPTION)
        for future in done:
            future.result()  # the first that failed says why
        if len(done) < len(waiting):
            raise JudgeError(f"no reply of the judge {judge.model!r} within {limit_s:g} s")
        return [future.result() for future in waiting]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _ask_once(judge: JudgeConfig, sample: int, messages: Messages, parse: Callable[[str], T], deadline: float) -> T:
    path = cache_path(judge, sample, messages)
    cached = read_reply(path) if path else None
    if cached is not None:
        try:
            return parse(cached)
        except ValueError as error:
            if not judge.url:
                raise JudgeError(f"the reply of {judge.model!r} cannot be used: {error}") from error
    if not judge.url:
        raise JudgeError(f"no reply of {judge.model!r} is in the cache, and judge.url is empty")
    reason: Exception | None = None
    for attempt in range(judge.attempts):
        if attempt:
            time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
        if time.monotonic() >= deadline:
            break
        try:
            reply = _post(judge, messages, deadline)
            parsed = parse(reply)
        except _Refused as error:
            raise JudgeError(f"the judge {judge.model!r} refuses: {error}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error
            continue
        if path:
            write_reply(path, reply)
        return parsed
    raise JudgeError(f"no usable reply of the judge {judge.model!r}: {reason or 'no time left'}")


class _Refused(Exception):
    """The endpoint answered, and would answer the same again."""


def _post(judge: JudgeConfig, messages: Messages, deadline: float) -> str:
    """Returns the text of one reply; raises OSError, HTTPException or ValueError where another try may help."""
    url = urllib.parse.urlsplit(judge.url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    headers = {"Content-Type": "application/json"}
    key = os.environ.get(judge.key_variable, "") if judge.key_variable else ""
    if key:
        headers["Authorization"] = f"Bearer {key}"
    body = {
        "model": judge.model,
        "messages": list(messages),
        "temperature": judge.temperature,
        "max_tokens": judge.max_tokens,
    }
    assert url.hostname is not None  # validated
    # Redirects are not followed: the key goes nowhere else.
    connection = kind(url.hostname, url.port, timeout=max(0.05, deadline - time.monotonic()))
    try:
        connection.request("POST", f"{url.path.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        response = connection.getresponse()
        content = response.read(_LARGEST_REPLY + 1)
    finally:
        connection.close()
    if response.status != 200:
        shown = content[:200].decode(errors="replace")
        message = f"HTTP status {response.status}: {shown.replace(key, '***') if key else shown}"
        raise OSError(message) if response.status in _RETRIED else _Refused(message)
    if len(content) > _LARGEST_REPLY:
        raise _Refused(f"a reply of more than {_LARGEST_REPLY} bytes")
    return _read_content(content)


def _read_content(content: bytes) -> str:
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"the endpoint's answer has no choices[0].message.content: {content[:100]!r}") from error
    if not isinstance(text, str):
        raise ValueError(f"choices[0].message.content is {text!r:.80}, not a text")
    return text


def cache_path(judge: JudgeConfig, sample: int, messages: Messages) -> Path | None:
    """Returns where the reply to this question is kept, None where none are. It depends on all that shapes a reply."""
    if not judge.cache:
        return None
    question: list[Any] = [judge.url, judge.model, judge.temperature, judge.max_tokens, sample, list(messages)]
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode("ascii")).hexdigest()
    return Path(judge.cache).expanduser() / digest[:2] / digest[2:]


def read_reply(path: Path) -> str | None:
    """Returns a kept reply, or None."""
    try:
        return path.read_bytes().decode("utf-8", "surrogatepass")
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def write_reply(path: Path, reply: str) -> None:
    """Keeps a reply. Several processes may do so at once: a reader sees a whole reply or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(reply.encode("utf-8", "surrogatepass"))
    os.replace(file.name, path)
