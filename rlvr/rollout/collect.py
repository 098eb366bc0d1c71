"""One step's samples: tasks in, completions with verdicts out, each verified while others still decode."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlvr.policy.transformer import Params
from rlvr.rollout.config import EngineStats
from rlvr.rollout.engine import Engine
from rlvr.text.chat import encode_task
from rlvr.text.tokenizer import Tokenizer
from rlvr.timing import timed
from rlvr.types import Completion, Request, Task, Verdict
from rlvr.verifiers.pool import VerifierPool


@dataclasses.dataclass(frozen=True)
class Episode:
    """One sampled and verified completion."""

    task: Task
    completion: Completion
    text: str
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Collected:
    """All episodes of a call, prompt by prompt, and where the time went.

    Attributes:
        episodes: sample s of task p is at p * samples + s.
        decode_s: seconds of the engine, from the first prefill to the last token.
        verify_wait_s: seconds spent waiting for verdicts.
        engine: what the engine did.
    """

    episodes: list[Episode]
    decode_s: float
    verify_wait_s: float
    engine: EngineStats


class Sampled:
    """Completions of tasks, whose verdicts may still be under way.

    Attributes:
        completions: in the order of the tasks, sample by sample.
        facts: how they came about, as JSON values.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        completions: Sequence[Completion],
        texts: Mapping[int, str],
        futures: Mapping[int, Future[Verdict]],
        facts: Mapping[str, Any],
    ):
        self.completions, self.facts = completions, facts
        self._tasks, self._texts, self._futures = tasks, texts, futures

    def verify(self) -> Collected:
        """Waits for the verdicts. With several processes each verifies its share and all get every verdict."""
        began = time.monotonic()
        own = {i: future.result() for i, future in self._futures.items()}
        verdicts = share_verdicts(own, len(self.completions))
        samples = len(self.completions) // len(self._tasks)
        episodes = [
            Episode(self._tasks[i // samples], completion, self._texts[i], verdicts[i])
            for i, completion in enumerate(self.completions)
        ]
        engine = EngineStats(**self.facts["engine"])
        return Collected(episodes, self.facts["decode_s"], time.monotonic() - began, engine)


class Collector:
    """Samples tasks with an engine and verifies the completions in a pool."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, pool: VerifierPool):
        self._engine = engine
        self._tokenizer = tokenizer
        self._pool = pool

    def collect(self, params: Params, tasks: Sequence[Task], key: jax.Array, **options: Any) -> Collected:
        """Samples and verifies; see `sample`."""
        return self.sample(params, tasks, key, **options).verify()

    def sample(
        self,
        params: Params,
        tasks: Sequence[Task],
        key: jax.Array,
        *,
        samples: int,
        temperature: float,
        hinted: bool = False,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        on_dispatch: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Sampled:
        """Samples each task `samples` times; see `Engine.generate`. Each completion is being verified once it is done.

        Args:
            hinted: whether it is the prompts with privileged information that are sampled from.

        Raises:
            DataError: a prompt is longer than the engine's budget.
            Interrupted: `should_stop` said so.
        """
        requests = self._requests(tasks, samples, hinted)
        texts: dict[int, str] = {}
        futures: dict[int, Future[Verdict]] = {}
        elsewhere = 0.0  # seconds that are not the engine's

        def count_dispatch() -> None:
            nonlocal elsewhere
            with timed() as took:
                on_dispatch()
            elsewhere += took()

        with timed() as took:
            completions = self._engine.generate(
                params,
                requests,
                key,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                on_completion=lambda completion: self._submit(tasks, samples, completion, texts, futures),
                on_dispatch=count_dispatch,
                should_stop=should_stop,
            )
        facts = {"decode_s": took() - elsewhere, "engine": dataclasses.asdict(self._engine.stats)}
        return Sampled(tasks, completions, texts, futures, facts)

    def resume(
        self,
        tasks: Sequence[Task],
        samples: int,
        arrays: Mapping[str, np.ndarray],
        facts: Mapping[str, Any],
        *,
        hinted: bool = False,
    ) -> Sampled:
        """Returns what `sample` returned, from `pack_completions` of it and its facts; verifies it anew."""
        completions = unpack_completions(self._requests(tasks, samples, hinted), arrays)
        texts: dict[int, str] = {}
        futures: dict[int, Future[Verdict]] = {}
        for completion in completions:
            self._submit(tasks, samples, completion, texts, futures)
        return Sampled(tasks, completions, texts, futures, facts)

    def _requests(self, tasks: Sequence[Task], samples: int, hinted: bool) -> list[Request]:
        """Returns the requests; the samples of a task that comes again go on where its first ones ended."""
        requests: list[Request] = []
        seen: Counter[int] = Counter()
        for task in tasks:
            prompt = tuple(encode_task(self._tokenizer, task, hinted=hinted))
            first = seen[task.prompt_id]
            requests += [Request(len(requests) + s, task.prompt_id, first + s, prompt) for s in range(samples)]
            seen[task.prompt_id] += samples
        return requests

    def _submit(
        self,
        tasks: Sequence[Task],
        samples: int,
        completion: Completion,
        texts: dict[int, str],
        futures: dict[int, Future[Verdict]],
    ) -> None:
        index = completion.request.index
        texts[index] = self._tokenizer.decode(completion.tokens.tolist())
        if index % jax.process_count() == jax.process_index():
            futures[index] = self._pool.submit(tasks[index // samples], texts[index], len(completion.tokens))


def pack_completions(completions: Sequence[Completion]) -> dict[str, np.ndarray]:
    """Returns everything that was sampled as arrays, one for each field of `Completion`, end to end."""
    arrays = {
        "tokens": np.concatenate([c.tokens for c in completions]),
        "logprobs": np.concatenate([c.logprobs for c in completions]),
        "lengths": np.array([len(c.tokens) for c in completions], np.int32),
        "stopped": np.array([c.stop_reason == "stop" for c in completions], np.uint8),
    }
    for name in ("choices", "support"):
        parts = [getattr(c, name) for c in completions]
        if parts[0] is not None:
            arrays[name] = np.concatenate(parts)
    return arrays


def unpack_completions(requests: Sequence[Request], arrays: Mapping[str, np.ndarray]) -> list[Completion]:
    """Returns the completions of which `pack_completions` made the arrays.

    Raises:
        ValueError: they are of other requests.
    """
    lengths = np.asarray(arrays["lengths"])
    if len(lengths) != len(requests):
        raise ValueError(f"{len(lengths)} completions were saved, of {len(requests)} requests")
    sampled = np.cumsum(lengths)[:-1]
    parts = {name: np.split(np.asarray(arrays[name]), sampled) for name in ("tokens", "logprobs")}
    if "support" in arrays:
        parts["support"] = np.split(np.asarray(arrays["support"]), sampled)
    if "choices" in arrays:
        run = np.cumsum([len(r.prompt) + n for r, n in zip(requests, lengths, strict=True)])[:-1]
        parts["choices"] = np.split(np.asarray(arrays["choices"]), run)
    return [
        Completion(
            request,
            stop_reason="stop" if arrays["stopped"][i] else "length",
            **{name: values[i] for name, values in parts.items()},
        )
        for i, request in enumerate(requests)
    ]


def share_verdicts(own: dict[int, Verdict], total: int) -> list[Verdict]:
    """Returns all verdicts on every process, given each process's own; one process needs no exchange."""
    if jax.process_count() == 1:
        return [own[i] for i in range(total)]
    # Parts have other names from verdict to verdict: they travel as text, and floats survive that exactly.
    text = json.dumps({i: dataclasses.asdict(verdict) for i, verdict in own.items()}).encode("ascii")
    verdicts = {int(i): Verdict(**fields) for part in _allgather_bytes(text) for i, fields in json.loads(part).items()}
    return [verdicts[i] for i in range(total)]


def _allgather_bytes(own: bytes) -> list[bytes]:
    """Returns the bytes of every process, in the order of the processes."""
    sizes = multihost_utils.process_allgather(np.array([len(own)], np.int32)).reshape(-1)
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(own)] = np.frombuffer(own, np.uint8)
    gathered = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(gathered, sizes, strict=True)]
