"""The engine: rows that decode together, refilled as sequences end, over a paged cache.

The host decides (`rlvr.rollout.schedule`), the device samples (`rlvr.rollout.steps`). No decision can change a sample:
keys come from the sequence's identity, a prompt's bucket from its own length, and rows of a batch do not touch each
other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlvr import errors, partition
from rlvr.policy import cache as cache_lib
from rlvr.policy.transformer import Params, Policy
from rlvr.rollout import steps
from rlvr.rollout.config import EngineConfig, EngineStats
from rlvr.rollout.requests import check_requests, request_keys
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.schedule import Admissions, Prompt, Running, Schedule
from rlvr.rollout.weights import make_placement
from rlvr.types import Completion, Request

log = logging.getLogger("rlvr")


class Interrupted(Exception):
    """Generation was asked to stop before it was done; nothing of it is kept."""


class Keys(NamedTuple):
    """Keys of the sequences of a call, which stay on the device: the host would wait for what runs there before.

    Attributes:
        places: request index -> place in the data.
        data: [n, 2] uint32.
    """

    places: Mapping[int, int]
    data: jax.Array


class PromptChoices:
    """Experts of the prompts of a call, for a mixture policy, read from the device when it has passed them anyway."""

    def __init__(self) -> None:
        self.of: dict[Prompt, np.ndarray] = {}
        self.unread: list[tuple[Sequence[Prompt], jax.Array]] = []

    def read(self) -> None:
        """Reads what is unread; the last token of a prompt is run by the first decode."""
        for prompts, array in self.unread:
            read = partition.host_value(array)
            self.of |= {prompt: read[row, : len(prompt) - 1].copy() for row, prompt in enumerate(prompts)}
        self.unread.clear()


class Engine:
    """Samples completions of many requests through S slots. Call within `jax.set_mesh(mesh)`.

    Args:
        policy: the policy.
        config: sizes.
        stop_ids: tokens that end a sequence and stay part of it.
        mesh: rows and pages are split over its batch axes.
        stop_strings: texts that end a sequence wherever token boundaries lie; the token that completes one is the last.
        decode_text: token ids -> text; needed for stop strings.
    """

    def __init__(
        self,
        policy: Policy,
        config: EngineConfig,
        stop_ids: Sequence[int],
        mesh: Mesh,
        *,
        stop_strings: Sequence[str] = (),
        decode_text: Callable[[Sequence[int]], str] | None = None,
    ):
        config.validate("engine")
        for field in ("slots", "prefill_rows"):
            partition.check_divisible(f"engine.{field}", getattr(config, field), "batch", mesh)
        for rows in config.tail_rows:
            partition.check_divisible("engine.tail_rows", rows, "batch", mesh)
        if "" in stop_strings:
            raise errors.ConfigError(
                f"stop strings {list(stop_strings)} hold an empty text, which would end everything"
            )
        if stop_strings and decode_text is None:
            raise ValueError("stop strings need decode_text")
        self.config, self.stats = config, EngineStats()
        self._stop_strings, self._decode_text = tuple(stop_strings), decode_text
        policy, self._place = make_placement(policy, config.dtype, config.weights, mesh)
        self._vocab = policy.config.vocab_size
        self._buckets = sorted({*config.prompt_buckets, config.max_prompt_tokens})
        self._shards = partition.batch_shards(mesh)
        tokens = config.cache_tokens or config.slots * config.longest + self._shards * config.max_prompt_tokens
        # The pages of the longest sequence must fit into one pool.
        self._pages = -(-max(tokens // self._shards, config.longest) // config.page_tokens)
        self._page_bytes = cache_lib.page_bytes(policy.config, config.page_tokens)
        # Numbers of rows that decode, once they have been tried.
        self.tiers: tuple[int, ...] | None = None if config.tail_rows else (config.slots,)
        self._replicated = partition.replicated(mesh)
        # The same placement out of every step: one that differed would compile the next step a second time.
        pages = NamedSharding(mesh, partition.spec(cache_lib.AXES[cache_lib.pages_type(policy.config)]))
        self._make_pages = jax.jit(
            lambda: cache_lib.make_pages(policy.config, self._shards, self._pages, config.page_tokens),
            out_shardings=pages,
        )
        self._prefill = jax.jit(lambda params, tokens: steps.prefill(policy, params, tokens))
        self._admit = jax.jit(cache_lib.admit, donate_argnums=0, out_shardings=pages)
        self._duplicate = jax.jit(cache_lib.duplicate, donate_argnums=0, out_shardings=pages)
        self._read = jax.jit(lambda x: x, out_shardings=self._replicated)
        self._take = jax.jit(lambda keys, places: keys[places], out_shardings=self._replicated)

        def decode(
            params: Params, layers: tuple[cache_lib.AnyPages, ...], rows: steps.Rows, sampling: Sampling, filtered: bool
        ) -> tuple[tuple[cache_lib.AnyPages, ...], steps.Sampled]:
            return steps.decode(
                policy, params, layers, rows, sampling, tuple(stop_ids), config.decode_steps, filtered=filtered
            )

        # What the host reads is replicated so that every process can.
        self._decode = jax.jit(decode, static_argnums=4, donate_argnums=1, out_shardings=(pages, self._replicated))

    def generate(
        self,
        params: Params,
        requests: Sequence[Request],
        key: jax.Array,
        *,
        temperature: float,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        max_tokens: int | None = None,
        on_completion: Callable[[Completion], None] = lambda completion: None,
        on_dispatch: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """Samples every request.

        Args:
            params: the policy's parameters.
            requests: any number. Requests of one prompt that follow one another share its prefill and its pages.
            key: key of this call; a sequence's key is fold_in of it (or of its own seed's) with prompt_id, sample and
                position.
            temperature: 0 is greedy.
            top_k, top_p, min_p: see `rlvr.rollout.sampling.Sampling`; 0, 1 and 0 filter nothing.
            logit_bias: added to the logits of these tokens; -inf forbids one.
            max_tokens: budget of sampled tokens, at most (and by default) `max_new_tokens`, where a request has none.
            on_completion: called as soon as a sequence is done, while others still decode.
            on_dispatch: called whenever the device has work and before the host waits for it.
            should_stop: asked between dispatches.

        Returns:
            The completions in the order of the requests; `stats` tells what it took.

        Raises:
            DataError: a prompt is empty or longer than `max_prompt_tokens`.
            ConfigError: a budget or a filter out of its range.
            Interrupted: `should_stop` said so.
        """
        sampling, filtered = self._make_sampling(temperature, top_k, top_p, min_p, logit_bias)
        limits = check_requests(requests, self.config, max_tokens)
        row_keys = Keys({r.index: place for place, r in enumerate(requests)}, request_keys(requests, key))
        params = self._place(params)
        if self.tiers is None:
            self.tiers = self._prove_tiers(params, sampling)
        self.stats = EngineStats(page_bytes=self._page_bytes)
        # Prompts of one bucket together, so that a prefill is not half empty; the order cannot change a sample.
        schedule = Schedule(
            sorted(requests, key=lambda request: self._bucket(request.prompt)),
            limits,
            shards=self._shards,
            rows=self.config.slots // self._shards,
            pages=self._pages,
            page_tokens=self.config.page_tokens,
        )
        layers = self._make_pages()
        choices = PromptChoices()
        done: dict[int, Completion] = {}
        while schedule:
            if should_stop():
                raise Interrupted
            schedule.make_room(self.config.decode_steps)
            layers = self._carry_out(params, layers, schedule.admit(self.config.decode_steps), choices)
            layers, sampled = self._dispatch(params, layers, schedule, row_keys, sampling, filtered, on_dispatch)
            choices.read()
            for shard, sequence, stopped in sampled:
                if stopped or sequence.count >= sequence.limit:
                    schedule.finish(shard, sequence)
                    completion = sequence.complete(stopped, choices.of.get(sequence.request.prompt))
                    done[completion.request.index] = completion
                    self.stats.tokens += sequence.count
                    on_completion(completion)
        self.stats.evictions, self.stats.most_pages = schedule.evictions, schedule.pools.most_held
        return [done[request.index] for request in requests]

    def lower(self, params: Params) -> dict[str, Any]:
        """Lowers the programs of sampling without running any, for devices that need not be here.

        Args:
            params: shapes and shardings of the policy's parameters.

        Returns:
            {"prefill", "decode"}: lowered programs of the longest prompts and of all slots.
        """
        own = self._place.lower(params).out_info if hasattr(self._place, "lower") else params

        def given(x: Any) -> Any:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._replicated)

        tokens = jax.ShapeDtypeStruct((self.config.prefill_rows, self._buckets[-1]), jnp.int32)
        rows = jax.tree.map(given, self._make_rows(self.config.slots // self._shards))
        scalars = [given(jax.ShapeDtypeStruct((), dtype)) for dtype in (jnp.float32, jnp.int32)]
        sampling = Sampling(scalars[0], scalars[1], scalars[0], scalars[0], None)
        return {
            "prefill": self._prefill.lower(own, given(tokens)),
            "decode": self._decode.lower(own, self._make_pages.lower().out_info, rows, sampling, False),
        }

    def _make_sampling(
        self, temperature: float, top_k: int, top_p: float, min_p: float, logit_bias: Mapping[int, float] | None
    ) -> tuple[Sampling, bool]:
        """Returns the filters as arrays, and whether there are any."""
        errors.check_temperature("temperature", temperature)
        errors.check_at_least("top_k", top_k, 0)
        errors.check_between("top_p", top_p, 1e-6, 1.0)
        errors.check_between("min_p", min_p, 0.0, 1.0)
        bias = None
        if logit_bias:
            for token in logit_bias:
                errors.check_between("logit_bias", token, 0, self._vocab - 1)
            dense = np.zeros(self._vocab, np.float32)
            dense[list(logit_bias)] = list(logit_bias.values())
            bias = partition.put(dense, self._replicated)
        sampling = Sampling(
            jnp.float32(temperature),
            jnp.int32(min(top_k or self._vocab, self._vocab)),
            jnp.float32(top_p),
            jnp.float32(min_p),
            bias,
        )
        return sampling, bool(top_k) or top_p < 1.0 or min_p > 0.0

    def _carry_out(
        self,
        params: Params,
        layers: tuple[cache_lib.AnyPages, ...],
        work: Admissions,
        choices: PromptChoices,
    ) -> tuple[cache_lib.AnyPages, ...]:
        """Prefills prompts, and gives each new sequence its own copy of the page that its prompt ends in."""
        waiting = list(work.prefills)
        while waiting:
            bucket = self._bucket(waiting[0])
            batch = [p for p in waiting if self._bucket(p) == bucket][: self.config.prefill_rows]
            waiting = [p for p in waiting if p not in set(batch)]
            tokens = np.zeros((self.config.prefill_rows, bucket), np.int32)
            for row, prompt in enumerate(batch):
                tokens[row, : len(prompt)] = prompt
            prefilled = self._prefill(params, partition.put(tokens, self._replicated))
            self.stats.prefill_tokens += tokens.size
            moves = [
                (row, block, shard, page)
                for row, prompt in enumerate(batch)
                for shard, pages in work.prefills[prompt]
                for block, page in enumerate(pages)
            ]
            blocks = -(-bucket // self.config.page_tokens)
            for table in self._tables(moves, self.config.prefill_rows * blocks, target=3):
                layers = self._admit(layers, prefilled.prefixes, *table)
            if prefilled.choices is not None:
                choices.unread.append((batch, self._read(prefilled.choices)))
        for table in self._tables(work.copies, self.config.slots, target=2):
            layers = self._duplicate(layers, *table)
        return layers

    def _tables(self, moves: Sequence[tuple[int, ...]], size: int, *, target: int) -> list[list[jax.Array]]:
        """Returns the columns of `moves` in tables of `size` rows; padding has no page in column `target`."""
        tables = []
        for start in range(0, len(moves), size):
            columns = np.zeros((len(moves[0]), size), np.int32)
            columns[target] = self._pages
            part = moves[start : start + size]
            columns[:, : len(part)] = np.array(part).T
            tables.append([partition.put(column, self._replicated) for column in columns])
        return tables

    def _dispatch(
        self,
        params: Params,
        layers: tuple[cache_lib.AnyPages, ...],
        schedule: Schedule,
        row_keys: Keys,
        sampling: Sampling,
        filtered: bool,
        on_dispatch: Callable[[], None],
    ) -> tuple[tuple[cache_lib.AnyPages, ...], list[tuple[int, Running, bool]]]:
        """Samples up to `decode_steps` tokens of every sequence: returns (shard, sequence, stopped) of each."""
        assert self.tiers is not None
        fullest = max(len(running) for running in schedule.running)
        per_shard = min(rows for rows in self.tiers if rows // self._shards >= fullest) // self._shards
        running = [(shard, shard * per_shard + place, sequence) for shard, place, sequence in schedule.sequences()]
        rows, places = self._make_rows(per_shard), np.zeros(per_shard * self._shards, np.int32)
        for shard, row, sequence in running:
            rows.token[row], rows.position[row] = sequence.last, sequence.position
            rows.sampled[row], rows.limit[row] = sequence.count, sequence.limit
            places[row] = row_keys.places[sequence.request.index]
            rows.table[shard, row % per_shard, : len(sequence.pages)] = sequence.pages
        placed, at = jax.tree.map(lambda x: partition.put(x, self._replicated), (rows, places))
        placed = placed._replace(keys=self._take(row_keys.data, at))
        layers, out = self._decode(params, layers, placed, sampling, filtered)
        on_dispatch()
        out = jax.tree.map(partition.host_value, out)
        self._count_dispatch(out, per_shard * self._shards, [sequence for _, _, sequence in running])
        for _, row, sequence in running:
            fresh = slice(0, out.taken[row])
            sequence.tokens.append(out.tokens[row, fresh].copy())
            sequence.logprobs.append(out.logprobs[row, fresh].copy())
            for kept, read in ((sequence.choices, out.choices), (sequence.support, out.support)):
                if read is not None:
                    kept.append(read[row, fresh].copy())
            sequence.count += int(out.taken[row])
            sequence.last = int(sequence.tokens[-1][-1])
        return layers, [(shard, s, bool(out.stopped[row]) | self._stop_at_string(s)) for shard, row, s in running]

    def _make_rows(self, per_shard: int) -> steps.Rows:
        """Returns empty rows, as numpy arrays."""
        count = per_shard * self._shards
        table: Any = np.full(
            (self._shards, per_shard, self.config.longest // self.config.page_tokens), self._pages, np.int32
        )
        fields: list[Any] = [np.zeros(count, np.int32) for _ in range(4)]
        return steps.Rows(*fields, np.zeros((count, 2), np.uint32), table)  # type: ignore[call-arg]

    def _count_dispatch(self, out: steps.Sampled, rows: int, running: Sequence[Running]) -> None:
        self.stats.dispatches += 1
        self.stats.row_steps += rows * int(np.max(out.taken))
        held = sum(sequence.position for sequence in running) + int(np.sum(out.taken))
        self.stats.most_tokens = max(self.stats.most_tokens, held)

    def _stop_at_string(self, sequence: Running) -> bool:
        """Cuts a sequence after the token that completes a stop string; returns whether one did."""
        if not self._stop_strings:
            return False
        assert self._decode_text is not None
        tokens = np.concatenate(sequence.tokens)
        before = len(tokens) - len(sequence.tokens[-1])
        # Nearly every token has a byte or more: a string that ends among the new tokens starts within this window.
        window = max(before - max(len(text.encode()) for text in self._stop_strings) - 8, 0)
        for count in range(before + 1, len(tokens) + 1):
            text = self._decode_text(tokens[window:count].tolist())
            if any(stop in text for stop in self._stop_strings):
                sequence.cut(count)
                return True
        return False

    def _prove_tiers(self, params: Params, sampling: Sampling) -> tuple[int, ...]:
        """Returns the numbers of rows that give the same bits as `slots`, found by decoding the same tokens."""
        whole = self._probe(params, sampling, self.config.slots)
        tiers = [self.config.slots]
        for rows in sorted(set(self.config.tail_rows), reverse=True):
            part = self._probe(params, sampling, rows)
            same = all(np.array_equal(a[:, : b.shape[1]], b) for a, b in zip(whole, part, strict=True))
            if same:
                tiers.append(rows)
            else:
                words = "engine.tail_rows=%d is not used: its log-probs differ in the last bits from those of %d rows"
                log.warning(words, rows, self.config.slots)
        return tuple(tiers)

    def _probe(self, params: Params, sampling: Sampling, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns tokens and log-probs [X, rows of a shard, n] of `count` rows that start from one token each."""
        rows = self._make_rows(count // self._shards)
        place = np.tile(np.arange(count // self._shards), self._shards)
        rows.token[:], rows.limit[:] = place % self._vocab, min(self.config.decode_steps, self.config.max_new_tokens)
        rows.keys[:, 1] = place
        pages = self.config.longest // self.config.page_tokens
        enough = place < self._pages // pages
        rows.table.reshape(count, -1)[enough] = place[enough, None] * pages + np.arange(pages)
        placed = jax.tree.map(lambda x: partition.put(x, self._replicated), rows)
        _, out = self._decode(
            params, self._make_pages(), placed, sampling._replace(temperature=jnp.float32(1.0)), False
        )
        return tuple(
            partition.host_value(x).reshape(self._shards, count // self._shards, -1) for x in (out.tokens, out.logprobs)
        )

    def _bucket(self, prompt: Prompt) -> int:
        return next(bucket for bucket in self._buckets if len(prompt) <= bucket)
