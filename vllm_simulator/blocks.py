"""Paged KV blocks: reference counts, an LRU queue of free blocks, and what each still holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

Content = tuple[int, int]  # (stream of tokens, index of the block in it)


class BlockPool:
    """The KV blocks of one engine, as vLLM's block pool keeps them.

    A free block keeps its content until it is taken again, oldest first: it is free and cached at
    once, which is why KV usage falls to 0 in an idle engine with a full prefix cache.
    """

    def __init__(self, usable: int) -> None:
        self.usable = usable
        self.free = usable
        self._untouched = usable
        self._queue: OrderedDict[int, None] = OrderedDict()
        self._holders: list[int] = []
        self._content_of: dict[int, Content] = {}
        self._block_of: dict[Content, int] = {}

    @property
    def usage_ratio(self) -> float:
        """The share of blocks held by live requests, 0..1."""
        return 1.0 - self.free / self.usable

    def take(self, count: int) -> list[int]:
        """`count` free blocks, emptied; the caller has seen that there are as many."""
        taken = []
        for _ in range(count):
            if self._untouched:
                self._untouched -= 1
                block = len(self._holders)
                self._holders.append(1)
            else:
                block, _ = self._queue.popitem(last=False)
                self._holders[block] = 1
                content = self._content_of.pop(block, None)
                if content is not None:
                    del self._block_of[content]
            taken.append(block)
        self.free -= count
        return taken

    def cached(self, contents: Iterable[Content]) -> list[int]:
        """The blocks of the longest leading part of `contents` that is still in the cache."""
        found = []
        for content in contents:
            block = self._block_of.get(content)
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Sequence[int]) -> int:
        """How many of these cached blocks nobody holds: holding them uses up free ones."""
        return sum(self._holders[block] == 0 for block in blocks)

    def hold(self, blocks: Sequence[int]) -> None:
        """One more holder of each cached block."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._queue[block]
                self.free -= 1
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less of each; the last blocks of a sequence are the first to be reused."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._queue[block] = None
                self.free += 1

    def publish(self, block: int, content: Content) -> None:
        """Offer a full block to later requests; the first block of a content is the one kept."""
        if content not in self._block_of and block not in self._content_of:
            self._block_of[content] = block
            self._content_of[block] = content
