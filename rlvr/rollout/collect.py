"""One step's samples: tasks in, completions with verdicts out, each verified while others still decode."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlvr.policy.transformer import Params
from rlvr.rollout.engine import Engine
from rlvr.text.chat import encode_task
from rlvr.text.tokenizer import Tokenizer
from rlvr.types import STATUSES, Completion, Request, Task, Verdict
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
    """

    episodes: list[Episode]
    decode_s: float
    verify_wait_s: float


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
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Collected:
        """Samples each task `samples` times.

        With several processes each verifies its share and all get every verdict (the `detail` of the other
        processes' verdicts is not carried over).

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
                futures[index] = self._pool.submit(tasks[index // samples], texts[index])

        start = time.monotonic()
        completions = self._engine.generate(
            params,
            requests,
            key,
            temperature=temperature,
            on_completion=on_completion,
            should_stop=should_stop,
        )
        decoded = time.monotonic()
        verdicts = share_verdicts({i: future.result() for i, future in futures.items()}, len(requests))
        episodes = [
            Episode(tasks[i // samples], completion, texts[i], verdicts[i]) for i, completion in enumerate(completions)
        ]
        return Collected(episodes, decoded - start, time.monotonic() - decoded)


def share_verdicts(own: dict[int, Verdict], total: int) -> list[Verdict]:
    """Returns all verdicts on every process, given each process's own; one process needs no exchange."""
    if jax.process_count() == 1:
        return [own[i] for i in range(total)]
    table = np.zeros((total, 5), np.float64)
    for i, verdict in own.items():
        parts = verdict.parts
        status = STATUSES.index(verdict.status)
        table[i] = (
            verdict.score,
            status,
            verdict.seconds,
            parts.get("strict", 0.0),
            parts.get("lenient", 0.0),
        )
    # Each row is filled by one process and zero in the others. 64-bit floats do not survive the exchange: send bytes.
    gathered = multihost_utils.process_allgather(np.frombuffer(table.tobytes(), np.uint8))
    summed = np.sum([np.frombuffer(part.tobytes(), np.float64).reshape(total, 5) for part in gathered], axis=0)
    return [
        own.get(
            i,
            Verdict(row[0], STATUSES[int(row[1])], "", row[2], {"strict": row[3], "lenient": row[4]}),
        )
        for i, row in enumerate(summed)
    ]
