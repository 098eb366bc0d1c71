"""The host's schedule: pages belong to whom they should, nobody waits for ever, and memory follows the tokens held."""

from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np

from rlvr.rollout.pages import PagePools
from rlvr.rollout.schedule import Schedule
from rlvr.types import Request

SIZE = 4  # tokens of a page


def pages_of(tokens: int) -> int:
    return -(-tokens // SIZE)


def group(prompt: tuple[int, ...], samples: int, first: int = 0) -> list[Request]:
    return [Request(first + s, hash(prompt) % 2**31, s, prompt) for s in range(samples)]


def check_pages(schedule: Schedule, pages: int) -> None:
    """Every sequence has its own pages, but for the whole pages of a prompt, which its samples may share."""
    for running in schedule.running:
        own = Counter[int]()
        shared: dict[int, set[tuple[int, ...]]] = {}
        for r in running:
            whole = (len(r.request.prompt) - 1) // SIZE
            assert len(set(r.pages)) == len(r.pages) and all(0 <= page < pages for page in r.pages)
            for page in r.pages[:whole]:
                shared.setdefault(page, set()).add(r.request.prompt)
            own.update(r.pages[whole:])
        assert all(count == 1 for count in own.values())
        assert not own.keys() & shared.keys()
        assert all(len(prompts) == 1 for prompts in shared.values())


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(
    groups=st.lists(st.tuples(st.integers(1, 11), st.integers(1, 5)), min_size=1, max_size=8),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    shards=st.integers(1, 2),
    rows=st.integers(1, 4),
    spare=st.integers(0, 12),
    steps=st.integers(1, 5),
)
def test_all_requests_end_with_pages_of_their_own(
    groups: list[tuple[int, int]], lengths: list[int], shards: int, rows: int, spare: int, steps: int
) -> None:
    requests = []
    for i, (length, samples) in enumerate(groups):
        requests += group((i, *range(length - 1)), samples, len(requests))
    limits = {r.index: lengths[r.index % len(lengths)] for r in requests}
    pages = pages_of(11 + 9) + spare  # from just the longest sequence to plenty
    schedule = Schedule(requests, limits, shards=shards, rows=rows, pages=pages, page_tokens=SIZE)
    seen: list[int] = []
    prefilled: list[set[int]] = [set() for _ in range(shards)]  # pages that hold something
    for _ in range(1000):
        if not schedule:
            break
        schedule.make_room(steps)
        work = schedule.admit(steps)
        for prompt, targets in work.prefills.items():
            for shard, to in targets:
                assert len(to) == pages_of(len(prompt) - 1)
                prefilled[shard] |= set(to)
        sources = {(shard, source) for shard, source, _ in work.copies}
        assert not sources & {(shard, target) for shard, _, target in work.copies}
        assert all(source in prefilled[shard] for shard, source in sources)
        check_pages(schedule, pages)
        for shard, running in enumerate(schedule.running):
            assert len(running) <= rows
            for r in list(running):
                end = min(r.count + steps, r.limit)
                assert len(r.pages) >= pages_of(len(r.request.prompt) - 1 + end)
                r.count = end
                if r.count == r.limit:
                    schedule.finish(shard, r)
                    seen.append(r.request.index)
    assert not schedule and sorted(seen) == sorted(limits)
    assert schedule.pools.held() == 0


def test_a_group_holds_its_prompt_once() -> None:
    requests = group(tuple(range(4 * SIZE + 3)), 8)  # 18 tokens before the last: four whole pages and a part of one
    schedule = Schedule(requests, dict.fromkeys(range(8), 2 * SIZE), shards=1, rows=8, pages=64, page_tokens=SIZE)
    work = schedule.admit(1)
    assert [len(targets) for targets in work.prefills.values()] == [1]
    assert len(work.copies) == 7  # the last sample takes over the page that the prompt ends in
    assert schedule.pools.held() == 4 + 8
    assert len({tuple(r.pages[:4]) for r in schedule.running[0]}) == 1


def test_without_room_the_last_one_in_goes_back_and_the_first_one_ends() -> None:
    requests = [Request(i, i, 0, (i, 1)) for i in range(3)]
    schedule = Schedule(requests, dict.fromkeys(range(3), 12), shards=1, rows=3, pages=4, page_tokens=SIZE)
    schedule.admit(2)
    assert len(schedule.running[0]) == 2  # a page each is left for those that are in
    ended = []
    for _ in range(100):
        for r in list(schedule.running[0]):
            r.count = min(r.count + 2, 12)
            if r.count == 12:
                schedule.finish(0, r)
                ended.append(r.request.index)
        if not schedule:
            break
        schedule.make_room(2)
        schedule.admit(2)
    assert ended[0] == 0 and sorted(ended) == [0, 1, 2] and schedule.evictions > 0


def test_a_group_stays_in_the_pool_that_holds_its_prompt() -> None:
    requests = group((1, 2, 3), 3) + group((4, 5, 6), 3, 3)
    schedule = Schedule(requests, dict.fromkeys(range(6), 4), shards=2, rows=3, pages=16, page_tokens=SIZE)
    schedule.admit(1)
    assert [[r.request.index for r in running] for running in schedule.running] == [[0, 1, 2], [3, 4, 5]]


def test_pools_count_holders() -> None:
    pools = PagePools(1, 3)
    pages = pools.take(0, 2)
    assert pages is not None and pools.take(0, 2) is None and pools.held() == 2
    pools.share(0, pages[:1])
    pools.release(0, pages)
    assert pools.held() == 1 and pools.free(0) == 2
    pools.release(0, pages[:1])
    assert pools.held() == 0 and pools.most_held == 2
    assert np.array_equal(sorted(pools.take(0, 3) or []), [0, 1, 2])
