"""The size rules of PyTorch's CUDA caching allocator. Pure functions of integers.

Source: torch 2.13, `c10/core/AllocatorConfig.h` (the constants; `large_segment_size_mb` at its default) and
`c10/cuda/CUDACachingAllocator.cpp` (`round_size`, `get_pool`, `get_allocation_size`, `should_split`). Left out, because off by default:
`roundup_power2_divisions`, `max_split_size_mb`, `garbage_collection_threshold`.
"""

from __future__ import annotations

from llamamath.units import MIB

MIN_BLOCK_BYTES = 512
"""`kMinBlockSize`: every block is a multiple of it."""

SMALL_SIZE_BYTES = MIB
"""`kSmallSize`: the largest block of the small pool."""

SMALL_BUFFER_BYTES = 2 * MIB
"""`kSmallBuffer`: a segment of the small pool, and a page of its expandable segment."""

MIN_LARGE_ALLOC_BYTES = 10 * MIB
"""`kMinLargeAlloc`: below it, a large block is cut from a segment of LARGE_SEGMENT_BYTES."""

LARGE_SEGMENT_BYTES = 20 * MIB
"""`large_segment_size()`: that segment, and a page of the large pool's expandable segment."""

ROUND_LARGE_BYTES = 2 * MIB
"""`kRoundLarge`: larger segments are multiples of it."""

MAX_REQUEST_BYTES = 2**60
"""`NativeCachingAllocator::allocate` refuses requests of 1 EiB and more."""


def round_size(size_bytes: int) -> int:
    """The block of a request of `size_bytes` > 0: the next multiple of 512 B. `memory_allocated` counts this."""
    return -(-size_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES


def is_small(block_bytes: int) -> bool:
    """Whether a block of `block_bytes` (rounded) belongs to the small pool."""
    return block_bytes <= SMALL_SIZE_BYTES


def segment_size(block_bytes: int) -> int:
    """What is asked of the driver for a block of `block_bytes` (rounded) that no cached block can hold.

    With expandable segments the driver is asked for whole pages instead, but this size still stands in the out-of-memory message and in
    the check against `set_per_process_memory_fraction`.
    """
    if block_bytes <= SMALL_SIZE_BYTES:
        return SMALL_BUFFER_BYTES
    if block_bytes < MIN_LARGE_ALLOC_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-block_bytes // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES


def page_size(*, small: bool) -> int:
    """How much an expandable segment of the small or the large pool grows by (`find_expandable_block`)."""
    return SMALL_BUFFER_BYTES if small else LARGE_SEGMENT_BYTES


def smallest_remainder(*, small: bool, expandable: bool) -> int:
    """The smallest remainder that is split off a cached block; less stays inside the block, counted as allocated.

    `should_split`: 512 B in the small pool and in expandable segments, else more than 1 MiB. Sizes being multiples of 512 B, "more than
    1 MiB" is at least 1 MiB + 512 B.
    """
    return MIN_BLOCK_BYTES if small or expandable else SMALL_SIZE_BYTES + MIN_BLOCK_BYTES


def address_space(total_bytes: int, page_bytes: int) -> int:
    """Addresses reserved for one expandable segment: 9/8 of the device's memory, in whole pages (`ExpandableSegment`)."""
    return -(-(total_bytes + total_bytes // 8) // page_bytes) * page_bytes
