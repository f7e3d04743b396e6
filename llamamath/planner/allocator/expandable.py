"""Expandable segments: one growing range of addresses per pool, mapped to memory page by page.

Source: torch 2.13, `c10/cuda/CUDACachingAllocator.cpp`: `ExpandableSegment`, and in `DeviceCachingAllocator` `get_free_block`,
`find_expandable_block`, `map_block`, `try_allocate_expandable_block`, `unmap_block`, `release_expandable_segment`.

A range holds allocated, free and unmapped blocks; unmapped ones begin and end at page boundaries. New memory is mapped at the lowest
address where free and unmapped blocks side by side have room, so that holes fill before the end grows.
"""

from __future__ import annotations

from llamamath.planner.allocator.blocks import ADDRESS_MASK, Block, ExpandableSegment, Pool
from llamamath.planner.allocator.device import Device
from llamamath.planner.allocator.recorder import Recorder
from llamamath.planner.allocator.sizes import address_space


def choose_expandable(pool: Pool, index: int) -> int:
    """Which free block to take, `index` being the smallest that is large enough (`get_free_block`).

    A block in front of unmapped addresses counts with what it could grow to, so that the end of the segment is used last: the search goes
    on to larger blocks while the next one counts for less.
    """
    keys = pool.keys
    block = pool.blocks[keys[index] & ADDRESS_MASK]
    after = block.next
    if after is None or after.mapped:
        return index  # counts with its own size, which the next in order cannot undercut
    size = block.size + after.size
    for following in range(index + 1, len(keys)):
        block = pool.blocks[keys[following] & ADDRESS_MASK]
        after = block.next
        growable = block.size if after is None or after.mapped else block.size + after.size
        if growable >= size:
            break
        index, size = following, growable
    return index


def allocate_expandable(pool: Pool, size: int, device: Device, recorder: Recorder | None) -> Block | None:
    """A block of at least `size`, out of the cache, grown by mapping pages; None when the device has no memory left.

    What was mapped before the memory ran out stays mapped and cached (`try_allocate_expandable_block`).
    """
    candidate = _find_room(pool, size, device)
    if not candidate.mapped and not _map(pool, candidate, min(candidate.size, size), device, recorder):
        return None
    while candidate.size < size:
        following = candidate.next
        assert following is not None and not following.mapped, "a free block is followed by room that is not mapped"
        if not _map(pool, following, min(size - candidate.size, following.size), device, recorder):
            return None
        candidate = following  # has taken in what was free before it
    pool.remove(candidate)
    return candidate


def unmap(pool: Pool, block: Block, device: Device, recorder: Recorder | None) -> None:
    """Return the whole pages inside a free block to the driver; what is left of it at both ends stays cached (`unmap_block`).

    A range that is left without any memory is given up.
    """
    segment = block.segment
    assert segment is not None
    page = pool.page_bytes
    begin = segment.base + -(-(block.address - segment.base) // page) * page
    end = segment.base + (block.address + block.size - segment.base) // page * page
    if begin >= end:
        return
    pool.remove(block)
    if begin > block.address:
        before = Block(block.address, begin - block.address, pool, segment)
        before.insert_between(block.prev, block)
        pool.insert(before)
    if end < block.address + block.size:
        after = Block(end, block.address + block.size - end, pool, segment)
        after.insert_between(block, block.next)
        pool.insert(after)
    block.address, block.size, block.mapped = begin, end - begin, False
    if recorder is not None:
        recorder.record("segment_unmap", begin, block.size, "")
    device.give_back(block.size)
    pool.merge(block)
    if block.is_split:
        pool.insert_unmapped(block)
    else:
        device.give_back_range(segment.base, segment.size)


def _find_room(pool: Pool, size: int, device: Device) -> Block:
    """The first of a row of free and unmapped blocks with `size` bytes of addresses, lowest first; else a new range.

    `find_expandable_block`.
    """
    for block in pool.unmapped:
        before = block.prev
        first = before if before is not None and before.free else block
        room = 0
        current: Block | None = first
        while current is not None and room < size and (current.free or not current.mapped):
            room += current.size
            current = current.next
        if room >= size:
            return first
    total = max(address_space(device.total_bytes, pool.page_bytes), -(-size // pool.page_bytes) * pool.page_bytes)
    segment = ExpandableSegment(device.range_address(total), total)
    block = Block(segment.base, segment.size, pool, segment)
    pool.insert_unmapped(block)
    return block


def _map(pool: Pool, block: Block, size: int, device: Device, recorder: Recorder | None) -> bool:
    """Give an unmapped block memory for at least its first `size` bytes, all or nothing; it becomes a free block (`map_block`)."""
    mapped = -(-size // pool.page_bytes) * pool.page_bytes
    if not device.take(mapped):
        return False
    if recorder is not None:
        recorder.record("segment_map", block.address, mapped, "")
    pool.remove_unmapped(block)
    block.mapped = True
    if mapped < block.size:
        rest = Block(block.address + mapped, block.size - mapped, pool, block.segment)
        rest.insert_between(block, block.next)
        pool.insert_unmapped(rest)
        block.size = mapped
    pool.merge(block)
    pool.insert(block)
    return True
