"""The slot engine: a fixed number of sequences decode together; a finished one makes room for the next.

The schedule is decided on the host from replicated arrays, so every process of a multi-host run takes the same
decisions. No decision can change a sample: keys come from the sequence's identity, a prompt's bucket from its own
length, and rows of a batch do not touch each other.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlvr import errors, partition
from rlvr.policy.transformer import Params, Policy
from rlvr.rollout import steps
from rlvr.types import Completion, Request


class Interrupted(Exception):
    """Generation was asked to stop before it was done; nothing of it is kept."""


@dataclasses.dataclass
class EngineConfig:
    """Sizes of the slot engine.

    Attributes:
        slots: S, sequences that decode together.
        max_prompt_tokens: longest prompt.
        max_new_tokens: longest completion.
        prefill_rows: prompts prefilled in one dispatch.
        prompt_buckets: padded prompt lengths, one compiled prefill each; max_prompt_tokens is added.
        decode_steps: tokens a dispatch.
    """

    slots: int = 64
    max_prompt_tokens: int = 64
    max_new_tokens: int = 64
    prefill_rows: int = 8
    prompt_buckets: tuple[int, ...] = ()
    decode_steps: int = 8

    def validate(self, field: str) -> None:
        """Raises ConfigError naming the field that cannot work."""
        for name in ("slots", "max_prompt_tokens", "max_new_tokens", "prefill_rows", "decode_steps"):
            errors.check_at_least(f"{field}.{name}", getattr(self, name), 1)
        for bucket in self.prompt_buckets:
            errors.check_between(f"{field}.prompt_buckets", bucket, 1, self.max_prompt_tokens)


class Engine:
    """Samples completions of many requests through S slots. Call within `jax.set_mesh(mesh)`."""

    def __init__(self, policy: Policy, config: EngineConfig, stop_ids: Sequence[int], mesh: Mesh):
        config.validate("engine")
        partition.check_divisible("engine.slots", config.slots, "batch", mesh)
        partition.check_divisible("engine.prefill_rows", config.prefill_rows, "batch", mesh)
        self.config = config
        self._buckets = sorted({*config.prompt_buckets, config.max_prompt_tokens})
        self._length = config.max_prompt_tokens + config.max_new_tokens
        self._replicated = partition.replicated(mesh)
        # The same placement out of every step: one that differed would compile the next step a second time.
        placed = steps.slot_shardings(policy, mesh)
        self._make_slots = jax.jit(
            lambda: steps.make_slots(policy, config.slots, self._length, config.max_new_tokens), out_shardings=placed
        )
        self._prefill = jax.jit(lambda params, tokens: steps.prefill(policy, params, tokens))
        self._admit = jax.jit(steps.admit, donate_argnums=0, out_shardings=placed)

        def decode(
            params: Params, slots: steps.Slots, temperature: jax.Array, max_tokens: jax.Array
        ) -> tuple[steps.Slots, tuple[jax.Array, ...]]:
            slots = steps.decode(policy, params, slots, temperature, max_tokens, tuple(stop_ids), config.decode_steps)
            return slots, (slots.active, slots.sampled, slots.stopped, slots.tokens, slots.logprobs)

        # What the host reads is replicated so that every process can.
        self._decode = jax.jit(decode, donate_argnums=1, out_shardings=(placed, self._replicated))
        self._read_choices = jax.jit(lambda choices: choices, out_shardings=self._replicated)

    def generate(
        self,
        params: Params,
        requests: Sequence[Request],
        key: jax.Array,
        *,
        temperature: float,
        max_tokens: int | None = None,
        on_completion: Callable[[Completion], None] = lambda completion: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """Samples every request.

        Args:
            params: the policy's parameters.
            requests: any number; requests of one prompt that are admitted together share its prefill.
            key: key of this call; a sequence's key is fold_in of it with prompt_id, sample and position.
            temperature: 0 is greedy.
            max_tokens: budget of sampled tokens, at most (and by default) `max_new_tokens`.
            on_completion: called as soon as a sequence is done, while others still decode.
            should_stop: asked between dispatches.

        Returns:
            The completions in the order of the requests.

        Raises:
            DataError: a prompt is empty or longer than `max_prompt_tokens`.
            Interrupted: `should_stop` said so.
        """
        max_tokens = self.config.max_new_tokens if max_tokens is None else max_tokens
        errors.check_between("max_tokens", max_tokens, 1, self.config.max_new_tokens)
        if len({request.index for request in requests}) < len(requests):
            raise ValueError("two requests have the same index: completions are matched by it")
        for request in requests:
            check_prompt(request.prompt, self.config.max_prompt_tokens, f"request {request.index}")
        # Prompts of one bucket together, so that a prefill is not half empty; the order cannot change a sample.
        waiting = deque(sorted(requests, key=self._bucket))
        running: dict[int, Request] = {}
        done: dict[int, Completion] = {}
        slots = self._make_slots()
        while waiting or running:
            if should_stop():
                raise Interrupted
            slots = self._refill(params, slots, waiting, running, key)
            slots, read = self._decode(params, slots, jnp.float32(temperature), jnp.int32(max_tokens))
            active, count, stopped, tokens, logprobs = (partition.host_value(x) for x in read)
            finished = [slot for slot in sorted(running) if not active[slot]]
            choices = None
            if finished and slots.choices is not None:  # larger than the rest: read only when there is need
                choices = partition.host_value(self._read_choices(slots.choices))
            for slot in finished:
                request = running.pop(slot)
                completion = Completion(
                    request=request,
                    tokens=tokens[slot, : count[slot]].copy(),
                    logprobs=logprobs[slot, : count[slot]].copy(),
                    stop_reason="stop" if stopped[slot] else "length",
                    choices=None if choices is None else own_choices(choices[slot], len(request.prompt) + count[slot]),
                )
                done[completion.request.index] = completion
                on_completion(completion)
        return [done[request.index] for request in requests]

    def _refill(
        self,
        params: Params,
        slots: steps.Slots,
        waiting: deque[Request],
        running: dict[int, Request],
        key: jax.Array,
    ) -> steps.Slots:
        """Admits waiting requests to the free slots, prefilling each distinct prompt once."""
        free = deque(slot for slot in range(self.config.slots) if slot not in running)
        while waiting and free:
            batch: list[tuple[int, Request]] = []
            sources: dict[tuple[int, ...], int] = {}
            bucket = self._bucket(waiting[0])
            while waiting and free:
                prompt = waiting[0].prompt
                if prompt not in sources:
                    if len(sources) == self.config.prefill_rows or self._bucket(waiting[0]) != bucket:
                        break
                    sources[prompt] = len(sources)
                batch.append((free.popleft(), waiting.popleft()))
            slots = self._admit_batch(params, slots, batch, sources, bucket, key)
            running.update(batch)
        return slots

    def _admit_batch(
        self,
        params: Params,
        slots: steps.Slots,
        batch: list[tuple[int, Request]],
        sources: dict[tuple[int, ...], int],
        bucket: int,
        key: jax.Array,
    ) -> steps.Slots:
        tokens = np.zeros((self.config.prefill_rows, bucket), np.int32)
        for prompt, row in sources.items():
            tokens[row, : len(prompt)] = prompt
        entries = np.zeros((6, self.config.slots), np.uint32)
        entries[0] = self.config.slots  # padding goes nowhere
        for i, (slot, request) in enumerate(batch):
            prompt = request.prompt
            entries[:, i] = (
                slot, sources[prompt], prompt[-1], len(prompt) - 1, request.prompt_id, request.sample
            )  # fmt: skip
        table = partition.put(entries, self._replicated)
        at, source, token, position = (table[i].astype(jnp.int32) for i in range(4))
        admission = steps.Admission(at, source, token, position, prompt_id=table[4], sample=table[5])
        prompts = self._prefill(params, partition.put(tokens, self._replicated))
        return self._admit(slots, prompts, admission, key)

    def _bucket(self, request: Request) -> int:
        return next(bucket for bucket in self._buckets if len(request.prompt) <= bucket)


def own_choices(slot: np.ndarray, length: int) -> np.ndarray:
    """Returns the experts of a finished sequence of `length` tokens; the last token was never run: -1."""
    choices = slot[:length].copy()
    choices[-1] = -1
    return choices


def check_prompt(prompt: Sequence[int], limit: int, name: str) -> None:
    """Raises DataError if a prompt is empty or longer than the budget."""
    if not 1 <= len(prompt) <= limit:
        raise errors.DataError(
            f"the prompt of {name} has {len(prompt)} tokens; accepted: 1 to max_prompt_tokens={limit}. "
            "Raise engine.max_prompt_tokens or remove the row"
        )
