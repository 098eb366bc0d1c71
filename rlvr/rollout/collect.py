"""One step's samples: tasks in, completions with verdicts out, each verified while others still decode."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlvr.policy.transformer import Params
from rlvr.rollout.config import EngineStats
from rlvr.rollout.engine import Engine
from rlvr.text.chat import encode_task
from rlvr.text.tokenizer import Tokenizer
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
        decode_s: seconds from the first prefill to the last token.
        verify_wait_s: seconds spent waiting for verdicts after the last token.
        engine: what the engine did.
    """

    episodes: list[Episode]
    decode_s: float
    verify_wait_s: float
    engine: EngineStats


class Collector:
    """Samples tasks with an engine and verifies the completions in a pool."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, pool: VerifierPool):
        self._engine = engine
        self._tokenizer = tokenizer
        self._pool = pool

    def collect(
        self,
        params: Params,
        tasks: Sequence[Task],
        key: jax.Array,
        *,
        samples: int,
        temperature: float,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Collected:
        """Samples each task `samples` times; see `Engine.generate`.

        With several processes each verifies its share and all get every verdict.

        Raises:
            DataError: a prompt is longer than the engine's budget.
            Interrupted: `should_stop` said so.
        """
        prompts = [tuple(encode_task(self._tokenizer, task)) for task in tasks]
        requests = [
            Request(p * samples + s, task.prompt_id, s, prompts[p])
            for p, task in enumerate(tasks)
            for s in range(samples)
        ]
        texts: dict[int, str] = {}
        futures: dict[int, Future[Verdict]] = {}

        def on_completion(completion: Completion) -> None:
            index = completion.request.index
            texts[index] = self._tokenizer.decode(completion.tokens.tolist())
            if index % jax.process_count() == jax.process_index():
                futures[index] = self._pool.submit(tasks[index // samples], texts[index], len(completion.tokens))

        start = time.monotonic()
        completions = self._engine.generate(
            params,
            requests,
            key,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            on_completion=on_completion,
            should_stop=should_stop,
        )
        decoded = time.monotonic()
        verdicts = share_verdicts({i: future.result() for i, future in futures.items()}, len(requests))
        episodes = [
            Episode(tasks[i // samples], completion, texts[i], verdicts[i]) for i, completion in enumerate(completions)
        ]
        return Collected(episodes, decoded - start, time.monotonic() - decoded, self._engine.stats)


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
