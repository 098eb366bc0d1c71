"""What is measured, the same for this project and its peers: shapes, prompts, lengths, and how memory is counted.

Imports the standard library only: `scripts/peers` reads it in environments that have nothing else of ours.
"""

from __future__ import annotations

import dataclasses
import math
import random
import resource
import zlib
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Shape:
    """A dense Llama decoder with a tied head; letters as in `rlvr.types`.

    Attributes:
        vocab_size, dim, layers, query_heads, kv_heads, head_size, hidden: V, D, blocks, H, K, h, F.
        theta: of the rotary positions.
    """

    vocab_size: int
    dim: int
    layers: int
    query_heads: int
    kv_heads: int
    head_size: int
    hidden: int
    theta: float = 100_000.0


SHAPES = {
    "smollm2_135m": Shape(49152, 576, 30, 9, 3, 64, 1536),
    "tiny": Shape(512, 48, 1, 6, 2, 8, 96),
}

TAIL_SIGMA = 1.0  # of the logarithm: the median is 39, one length in two hundred reaches the maximum


def make_prompts(count: int, tokens: int, vocab_size: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Returns `count` different prompts of `tokens` random ids; the eight lowest ids are left out."""
    rng = random.Random(seed)
    return [tuple(rng.randrange(8, vocab_size) for _ in range(tokens)) for _ in range(count)]


def tail_lengths(count: int, mean: int, longest: int, seed: int = 0) -> list[int]:
    """Returns completion lengths: log-normal of the given mean (before it is cut), cut at 1 and `longest`."""
    rng = random.Random(seed)
    mu = math.log(mean) - TAIL_SIGMA**2 / 2
    return [min(max(round(rng.lognormvariate(mu, TAIL_SIGMA)), 1), longest) for _ in range(count)]


def in_batches(lengths: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    """Yields the lengths of each static batch, in order: a caller does not know them before they are sampled."""
    for start in range(0, len(lengths), size):
        yield lengths[start : start + size]


def dummy_reward(text: str) -> float:
    """Returns a reward in [0, 1) that is a hash of the text: no two samples of a group tie, so every row is trained."""
    return zlib.crc32(text.encode()) % 9973 / 9973


def peak_gb() -> float:
    """Returns the largest resident memory that this process ever had, in 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
