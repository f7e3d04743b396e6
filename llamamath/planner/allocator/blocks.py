"""Blocks, and the index of free ones.

Source: torch 2.13, `c10/cuda/CUDACachingAllocator.cpp`: `Block`, `BlockPool`, `BlockComparatorSize`, `try_merge_blocks`. One stream: the
pools of PyTorch are ordered by (stream, size, address), so the blocks of a second stream would be separate in any case.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from llamamath.planner.allocator.sizes import page_size, smallest_remainder

ADDRESS_BITS = 53
"""A free block is ordered by size, then address: `size << ADDRESS_BITS | address`, one integer."""

ADDRESS_MASK = (1 << ADDRESS_BITS) - 1

_address = attrgetter("address")


class ExpandableSegment:
    """A range of addresses that is mapped to memory page by page."""

    __slots__ = ("base", "size")

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.size = size


class Block:
    """A piece of a segment: allocated, free (cached), or unmapped (addresses without memory, in an expandable segment only).

    `prev` and `next` are its neighbours in the segment; None at the ends.
    """

    __slots__ = ("address", "free", "label", "mapped", "next", "pool", "prev", "requested", "segment", "size")

    def __init__(self, address: int, size: int, pool: Pool, segment: ExpandableSegment | None) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.segment = segment
        self.requested = 0
        self.label = ""
        self.free = False
        self.mapped = True
        self.prev: Block | None = None
        self.next: Block | None = None

    @property
    def is_split(self) -> bool:
        """Whether it shares its segment with other blocks. Without expandable segments such a block cannot be given back."""
        return self.prev is not None or self.next is not None

    def insert_between(self, before: Block | None, after: Block | None) -> None:
        """Link this block between two neighbours."""
        self.prev = before
        self.next = after
        if before is not None:
            before.next = self
        if after is not None:
            after.prev = self


class Pool:
    """Free blocks of one pool (small or large) by size and address, and the unmapped ranges of its expandable segments by address.

    `keys` is sorted; `blocks` finds the block of a free address.
    """

    __slots__ = ("blocks", "keys", "page_bytes", "small", "smallest_remainder", "unmapped")

    def __init__(self, *, small: bool, expandable: bool) -> None:
        self.small = small
        self.page_bytes = page_size(small=small)
        self.smallest_remainder = smallest_remainder(small=small, expandable=expandable)
        self.keys: list[int] = []
        self.blocks: dict[int, Block] = {}
        self.unmapped: list[Block] = []

    def __iter__(self) -> Iterator[Block]:
        """Free blocks, smallest first. A copy: the pool may change meanwhile."""
        return iter([self.blocks[key & ADDRESS_MASK] for key in self.keys])

    def insert(self, block: Block) -> None:
        """Put a block into the cache."""
        block.free = True
        self.blocks[block.address] = block
        insort(self.keys, block.size << ADDRESS_BITS | block.address)

    def remove(self, block: Block) -> None:
        """Take a cached block out."""
        block.free = False
        del self.blocks[block.address]
        del self.keys[bisect_left(self.keys, block.size << ADDRESS_BITS | block.address)]

    def insert_unmapped(self, block: Block) -> None:
        """Remember a range of addresses without memory."""
        block.mapped = False
        insort(self.unmapped, block, key=_address)

    def remove_unmapped(self, block: Block) -> None:
        """Forget it: it was mapped, merged or given up."""
        self.unmapped.remove(block)

    def merge(self, block: Block) -> None:
        """Unite a block that is in neither index with its neighbours of the same kind, which leave theirs (`try_merge_blocks`)."""
        before, after = block.prev, block.next
        if before is not None and self._merges(block, before):
            block.address = before.address
            block.size += before.size
            block.prev = before.prev
            if block.prev is not None:
                block.prev.next = block
        if after is not None and self._merges(block, after):
            block.size += after.size
            block.next = after.next
            if block.next is not None:
                block.next.prev = block

    def _merges(self, block: Block, other: Block) -> bool:
        if other.mapped != block.mapped or (other.mapped and not other.free):
            return False
        if other.mapped:
            self.remove(other)
        else:
            self.remove_unmapped(other)
        return True
