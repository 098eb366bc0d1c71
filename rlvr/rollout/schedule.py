"""Which sequences decode, in which pages: the host's side of the engine, made of plain Python.

Decided from the requests and from what every process has read alike, so all processes of a multi-host run take the same
decisions. No decision can change a sample.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator, Sequence

import numpy as np

from rlvr.rollout.pages import PagePools
from rlvr.types import Completion, Request

Prompt = tuple[int, ...]


@dataclasses.dataclass
class Running:
    """One request that decodes.

    Attributes:
        request: what is asked for.
        shard: which pool its pages lie in.
        pages: of its positions in order; the first ones may be shared with others of its prompt.
        limit: tokens after which it ends.
        tokens, logprobs, choices, support: what each dispatch sampled (`rlvr.rollout.steps.Sampled`).
        count: tokens sampled so far.
        last: next token to feed.
    """

    request: Request
    shard: int
    pages: list[int]
    limit: int
    last: int
    count: int = 0
    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)
    choices: list[np.ndarray] = dataclasses.field(default_factory=list)
    support: list[np.ndarray] = dataclasses.field(default_factory=list)

    @property
    def position(self) -> int:
        """Position of the next token to feed."""
        return len(self.request.prompt) - 1 + self.count

    def cut(self, count: int) -> None:
        """Keeps the first `count` sampled tokens only."""
        for parts in (self.tokens, self.logprobs, self.choices, self.support):
            if parts:
                parts[:] = [np.concatenate(parts)[:count]]
        self.count = count

    def complete(self, stopped: bool, prompt_choices: np.ndarray | None) -> Completion:
        """Returns what the sequence has become.

        Args:
            stopped: whether it ended by itself.
            prompt_choices: experts of all tokens of the prompt but the last, for a mixture policy.
        """
        choices = None
        if self.choices:
            own = np.concatenate(self.choices)
            before = own[:0] if prompt_choices is None else prompt_choices
            # A dispatch tells the experts of what it fed, the prompt's last token first. The last sampled never ran.
            choices = np.concatenate([before, own, np.full_like(own[:1], -1)])
        return Completion(
            request=self.request,
            tokens=np.concatenate(self.tokens),
            logprobs=np.concatenate(self.logprobs),
            stop_reason="stop" if stopped else "length",
            choices=choices,
            support=np.concatenate(self.support) if self.support else None,
        )


@dataclasses.dataclass
class Held:
    """A prompt whose keys and values lie in a pool, for as long as requests of it wait.

    Attributes:
        pages: of all its tokens but the last, the last page possibly partly filled.
    """

    pages: list[int]


@dataclasses.dataclass
class Admissions:
    """What the device has to do before the next dispatch.

    Attributes:
        prefills: prompts to run, each with the (shard, pages) that its keys and values go to.
        copies: (shard, source page, target page): partly filled last pages of prompts, one for each sequence.
    """

    prefills: dict[Prompt, list[tuple[int, list[int]]]] = dataclasses.field(default_factory=dict)
    copies: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)


class Schedule:
    """Sequences that wait, and that decode.

    Args:
        requests: in the order in which they are to be admitted.
        limits: tokens after which each request ends, by index.
        shards: pools of pages; each decodes up to `rows` sequences.
        pages: pages of a pool; must hold the longest sequence.
        page_tokens: P.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        limits: dict[int, int],
        *,
        shards: int,
        rows: int,
        pages: int,
        page_tokens: int,
    ):
        self._waiting = deque(requests)
        self._wanted = Counter(request.prompt for request in requests)
        self._limits = limits
        self._rows, self._size = rows, page_tokens
        self.pools = PagePools(shards, pages)
        self.running: list[list[Running]] = [[] for _ in range(shards)]  # by shard, in the order of admission
        self._held: list[dict[Prompt, Held]] = [{} for _ in range(shards)]
        self._crowded = False  # whether `make_room` had to put a sequence out
        self.evictions = 0

    def __bool__(self) -> bool:
        return bool(self._waiting) or any(self.running)

    def sequences(self) -> Iterator[tuple[int, int, Running]]:
        """Yields (shard, place within it, sequence) of all that decode."""
        for shard, running in enumerate(self.running):
            for place, sequence in enumerate(running):
                yield shard, place, sequence

    def make_room(self, steps: int) -> None:
        """Gives every sequence the pages that the next `steps` tokens may need.

        Where a pool has too few, prompts that others wait for go first, to be run again later; then the sequence
        admitted last goes back to the queue, to be sampled again to the same tokens. The first one always finds room,
        so all end.
        """
        self._crowded = False
        for shard, running in enumerate(self.running):
            place = 0
            while place < len(running):
                sequence = running[place]
                last = min(sequence.position + steps, len(sequence.request.prompt) - 1 + sequence.limit)
                missing = self._count(last) - len(sequence.pages)
                new = self.pools.take(shard, missing) if missing > 0 else []
                if new is None and self._held[shard]:
                    self._forget_prompts(shard)
                elif new is None:
                    self._evict(shard)
                else:
                    sequence.pages += new
                    place += 1

    def admit(self, steps: int) -> Admissions:
        """Takes waiting requests into the free rows, with pages for their next `steps` tokens.

        Not right after an eviction: what was just put out would come in again, and go again.
        """
        work = Admissions()
        while self._waiting and not self._crowded:
            request = self._waiting[0]
            shard = self._choose_shard(request.prompt)
            if shard is None or not self._take_in(request, shard, steps, work):
                break
            self._waiting.popleft()
            self._wanted[request.prompt] -= 1
        # Only now: a page that is given back could be taken, and written, before the copies of this round have run.
        for shard, held in enumerate(self._held):
            for prompt in [prompt for prompt in held if not self._wanted[prompt]]:
                self.pools.release(shard, held.pop(prompt).pages)
        return work

    def finish(self, shard: int, sequence: Running) -> None:
        """Gives back the row and the pages of a sequence that has ended."""
        self.running[shard].remove(sequence)
        self.pools.release(shard, sequence.pages)

    def _choose_shard(self, prompt: Prompt) -> int | None:
        """Returns a shard with a free row: one that holds the prompt, else the emptiest; None if there is none."""
        free = [shard for shard, running in enumerate(self.running) if len(running) < self._rows]
        if not free:
            return None
        return min(free, key=lambda shard: (prompt not in self._held[shard], len(self.running[shard]), shard))

    def _take_in(self, request: Request, shard: int, steps: int, work: Admissions) -> bool:
        """Adds a request to a shard's sequences; False, and nothing is changed, if there are too few pages.

        The last request that waits for a prompt takes over its pages, so that nothing is held twice.
        """
        prompt, known = request.prompt, len(request.prompt) - 1
        limit = self._limits[request.index]
        held = self._held[shard].get(prompt)
        last = self._wanted[prompt] == 1
        total, whole = self._count(known + min(steps, limit)), known // self._size
        fresh = 0 if held or last else self._count(known)  # of the prompt, beside the sequence's own
        own = total - (0 if held is None and last else len(held.pages) if held and last else whole)
        pages = None
        if self.pools.free(shard) >= fresh + own + self._reserve(shard):
            pages = self.pools.take(shard, fresh + own)
        if pages is None:
            return not self.running[shard] and self._take_in_alone(request, shard, steps, work)
        if held is None and known:
            prompt_pages = pages[: self._count(known)]
            work.prefills.setdefault(prompt, []).append((shard, prompt_pages))
        if last:
            pages = (self._held[shard].pop(prompt).pages if held else []) + pages
        else:
            held = held or self._held[shard].setdefault(prompt, Held(pages[:fresh]))
            shared, pages = held.pages[:whole], pages[fresh:]
            self.pools.share(shard, shared)
            if known % self._size:
                work.copies.append((shard, held.pages[-1], pages[0]))
            pages = shared + pages
        self.running[shard].append(Running(request, shard, pages, limit, prompt[-1]))
        return True

    def _take_in_alone(self, request: Request, shard: int, steps: int, work: Admissions) -> bool:
        """Adds a request to a shard without sequences, whatever prompts its pool holds: they are run again later."""
        self._forget_prompts(shard)
        known, limit = len(request.prompt) - 1, self._limits[request.index]
        pages = self.pools.take(shard, self._count(known + min(steps, limit)))
        assert pages is not None, "a pool is smaller than a sequence"
        if known:
            work.prefills.setdefault(request.prompt, []).append((shard, pages[: self._count(known)]))
        self.running[shard].append(Running(request, shard, pages, limit, request.prompt[-1]))
        return True

    def _forget_prompts(self, shard: int) -> None:
        for held in self._held[shard].values():
            self.pools.release(shard, held.pages)
        self._held[shard].clear()

    def _reserve(self, shard: int) -> int:
        """Returns the pages to leave to those that decode already: one each, if they can still need one."""
        may_need = (self._count(len(r.request.prompt) - 1 + r.limit) - len(r.pages) for r in self.running[shard])
        return sum(min(need, 1) for need in may_need)

    def _evict(self, shard: int) -> None:
        sequence = self.running[shard][-1]
        self.finish(shard, sequence)
        self._wanted[sequence.request.prompt] += 1
        self._waiting.appendleft(sequence.request)
        self._crowded = True
        self.evictions += 1

    def _count(self, tokens: int) -> int:
        """Returns the pages that hold so many tokens."""
        return -(-tokens // self._size)
