"""Which page of the cache belongs to whom: host bookkeeping of one pool of pages for each shard."""

from __future__ import annotations

from collections.abc import Sequence


class PagePools:
    """Pages that are free, and how many hold on to each of the others.

    Args:
        shards: number of pools.
        pages: pages of each.
    """

    def __init__(self, shards: int, pages: int):
        self.pages = pages
        self._free = [list(range(pages - 1, -1, -1)) for _ in range(shards)]
        self._holders = [[0] * pages for _ in range(shards)]
        self.most_held = 0  # over all pools, at any time

    def free(self, shard: int) -> int:
        """Returns how many pages of a pool are free."""
        return len(self._free[shard])

    def take(self, shard: int, count: int) -> list[int] | None:
        """Returns so many pages, held once each, or None if there are not enough."""
        if count > len(self._free[shard]):
            return None
        taken = [self._free[shard].pop() for _ in range(count)]
        for page in taken:
            self._holders[shard][page] = 1
        self.most_held = max(self.most_held, self.held())
        return taken

    def share(self, shard: int, pages: Sequence[int]) -> None:
        """Adds a holder to pages that are held already."""
        for page in pages:
            assert self._holders[shard][page] > 0
            self._holders[shard][page] += 1

    def release(self, shard: int, pages: Sequence[int]) -> None:
        """Takes a holder from each page; one without holders is free."""
        for page in pages:
            self._holders[shard][page] -= 1
            assert self._holders[shard][page] >= 0
            if not self._holders[shard][page]:
                self._free[shard].append(page)

    def held(self) -> int:
        """Returns how many pages of all pools are held."""
        return sum(self.pages - len(free) for free in self._free)
