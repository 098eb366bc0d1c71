"""Sizes of the engine, and what a call of it did."""

from __future__ import annotations

import dataclasses

from rlvr import errors


@dataclasses.dataclass
class EngineConfig:
    """Sizes of the engine.

    Attributes:
        slots: S, sequences that decode together.
        max_prompt_tokens: longest prompt.
        max_new_tokens: longest completion.
        prefill_rows: prompts prefilled in one dispatch.
        prompt_buckets: padded prompt lengths, one compiled prefill each; max_prompt_tokens is added.
        decode_steps: tokens a dispatch. A sequence that ends leaves its row empty for the rest of the dispatch.
        page_tokens: P, tokens of a page of the cache.
        cache_tokens: tokens that the pages of the cache hold; 0 for as many as all slots can ever need. With fewer, the
            sequence admitted last is put back, and sampled again to the same tokens, when pages run out.
        tail_rows: smaller numbers of rows that may decode when fewer sequences are left, one compiled decode each. One
            that is found not to give the same bits as `slots` rows do is not used: on XLA CPU that is so where one is
            at most 32 and the other more.
        weights: "sharded" as in training, or "gathered": split over the tensor and expert axes only, so that no step of
            decoding gathers them over the fsdp axis.
        dtype: type of the activations, of the cache and of the layers' matrices while sampling; "" for the policy's.
    """

    slots: int = 64
    max_prompt_tokens: int = 64
    max_new_tokens: int = 64
    prefill_rows: int = 8
    prompt_buckets: tuple[int, ...] = ()
    decode_steps: int = 8
    page_tokens: int = 64
    cache_tokens: int = 0
    tail_rows: tuple[int, ...] = ()
    weights: str = "gathered"
    dtype: str = ""

    def validate(self, field: str) -> None:
        """Raises ConfigError naming the field that cannot work."""
        sizes = ("slots", "max_prompt_tokens", "max_new_tokens", "prefill_rows", "decode_steps", "page_tokens")
        for name in sizes:
            errors.check_at_least(f"{field}.{name}", getattr(self, name), 1)
        for bucket in self.prompt_buckets:
            errors.check_between(f"{field}.prompt_buckets", bucket, 1, self.max_prompt_tokens)
        for rows in self.tail_rows:
            errors.check_between(f"{field}.tail_rows", rows, 1, self.slots - 1)
        errors.check_choice(f"{field}.weights", self.weights, ("sharded", "gathered"))
        errors.check_choice(f"{field}.dtype", self.dtype, ("", "float32", "bfloat16"))
        if self.cache_tokens:
            errors.check_at_least(f"{field}.cache_tokens", self.cache_tokens, self.longest)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, in whole pages."""
        return -(-(self.max_prompt_tokens + self.max_new_tokens) // self.page_tokens) * self.page_tokens


@dataclasses.dataclass
class EngineStats:
    """What a call of `Engine.generate` did.

    Attributes:
        tokens: sampled and kept.
        row_steps: rows that were computed, summed over the steps of decoding.
        prefill_tokens: prompt tokens that were run, padding included.
        dispatches: of decoding.
        evictions: sequences put back for want of pages.
        most_pages: pages held at one time, at most; page_bytes: bytes of one.
        most_tokens: tokens held at that time.
    """

    tokens: int = 0
    row_steps: int = 0
    prefill_tokens: int = 0
    dispatches: int = 0
    evictions: int = 0
    most_pages: int = 0
    page_bytes: int = 0
    most_tokens: int = 0

    def __add__(self, later: EngineStats) -> EngineStats:
        """Returns what both calls did together, one after the other."""
        highest = ("most_pages", "page_bytes", "most_tokens")
        pairs = {
            field.name: (getattr(self, field.name), getattr(later, field.name)) for field in dataclasses.fields(self)
        }
        return EngineStats(**{name: max(pair) if name in highest else sum(pair) for name, pair in pairs.items()})

    @property
    def occupancy(self) -> float:
        """Share of the computed rows that sampled a token which was kept."""
        return self.tokens / max(self.row_steps, 1)
