"""The caching allocator: the documented size rules, the two modes, and what happens when memory runs out."""

from __future__ import annotations

import pytest

from llamamath.errors import DoesNotFitError, UsageError
from llamamath.planner.allocator import CachingAllocator, OutOfMemory, Recorder
from llamamath.planner.allocator.sizes import address_space, is_small, round_size, segment_size, smallest_remainder
from llamamath.units import KIB, MIB


@pytest.mark.parametrize(
    ("requested", "block"),
    [(1, 512), (511, 512), (512, 512), (513, 1024), (MIB, MIB), (MIB + 1, MIB + 512), (8_519_680, 8_519_680)],
)
def test_round_size(requested: int, block: int) -> None:
    assert round_size(requested) == block


@pytest.mark.parametrize(
    ("block", "segment", "small"),
    [
        (512, 2 * MIB, True),
        (MIB, 2 * MIB, True),
        (MIB + 512, 20 * MIB, False),
        (10 * MIB - 512, 20 * MIB, False),
        (10 * MIB, 10 * MIB, False),
        (10 * MIB + 512, 12 * MIB, False),
        (21 * MIB, 22 * MIB, False),
    ],
)
def test_segment_size(block: int, segment: int, small: bool) -> None:
    assert segment_size(block) == segment
    assert is_small(block) is small


def test_smallest_remainder() -> None:
    assert smallest_remainder(small=True, expandable=False) == 512
    assert smallest_remainder(small=False, expandable=False) == MIB + 512
    assert smallest_remainder(small=False, expandable=True) == 512


def test_address_space_is_nine_eighths_in_whole_pages() -> None:
    assert address_space(160 * MIB, 20 * MIB) == 180 * MIB
    assert address_space(161 * MIB, 20 * MIB) == 200 * MIB


def test_small_blocks_share_a_segment() -> None:
    allocator = CachingAllocator()
    for identity in range(2):
        allocator.malloc(identity, MIB)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (2 * MIB, 2 * MIB)
    allocator.malloc(2, 1)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (2 * MIB + 512, 4 * MIB)


def test_a_remainder_of_one_mebibyte_is_not_split_off() -> None:
    allocator = CachingAllocator()
    allocator.malloc(0, 19 * MIB)  # from a segment of 20 MiB: 1 MiB is left over, and counted as allocated
    assert (allocator.allocated_bytes, allocator.reserved_bytes, allocator.requested_bytes) == (20 * MIB, 20 * MIB, 19 * MIB)
    allocator = CachingAllocator(expandable=True)
    allocator.malloc(0, 19 * MIB)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (19 * MIB, 20 * MIB)


def test_best_fit_takes_the_smallest_that_holds() -> None:
    allocator = CachingAllocator()
    allocator.malloc(0, 64 * MIB)
    allocator.malloc(1, 32 * MIB)
    allocator.free(0)
    allocator.free(1)
    allocator.malloc(2, 30 * MIB)
    assert allocator.reserved_bytes == 96 * MIB
    allocator.malloc(3, 64 * MIB)
    assert allocator.reserved_bytes == 96 * MIB


def test_pools_do_not_mix() -> None:
    allocator = CachingAllocator()
    allocator.malloc(0, 64 * MIB)
    allocator.free(0)
    allocator.malloc(1, 512)
    assert allocator.reserved_bytes == 66 * MIB


def test_empty_cache_keeps_a_segment_that_is_partly_used() -> None:
    allocator = CachingAllocator()
    allocator.malloc(0, 5 * MIB)
    allocator.malloc(1, 5 * MIB)
    allocator.malloc(2, 40 * MIB)
    allocator.free(1)
    allocator.free(2)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 20 * MIB
    assert allocator.statistics().inactive_split_bytes == 15 * MIB
    assert allocator.statistics().num_segments == 1


def test_expandable_returns_whole_free_pages() -> None:
    allocator = CachingAllocator(expandable=True)
    allocator.malloc(0, 5 * MIB)
    allocator.malloc(1, 70 * MIB)
    allocator.malloc(2, 5 * MIB)
    assert allocator.reserved_bytes == 80 * MIB
    allocator.free(1)  # 5..75 MiB: pages 20..60 are free
    allocator.empty_cache()
    assert allocator.reserved_bytes == 40 * MIB
    allocator.malloc(3, 50 * MIB)  # fills the hole: 15 MiB free, 40 MiB mapped again
    assert allocator.reserved_bytes == 80 * MIB
    assert allocator.statistics().num_segments == 0


def test_release_and_retry() -> None:
    allocator = CachingAllocator(capacity_bytes=100 * MIB)
    allocator.malloc(0, 60 * MIB)
    allocator.free(0)
    allocator.malloc(1, 80 * MIB)
    assert allocator.reserved_bytes == 80 * MIB
    assert allocator.statistics().num_alloc_retries == 1


def test_out_of_memory_says_the_numbers_and_the_allocator_lives_on() -> None:
    allocator = CachingAllocator(capacity_bytes=100 * MIB)
    allocator.malloc(0, 30 * MIB)
    allocator.malloc(1, 30 * MIB)
    allocator.free(0)
    with pytest.raises(OutOfMemory, match="tried to allocate 72 MiB") as caught:
        allocator.malloc(2, 71 * MIB)
    error = caught.value
    assert isinstance(error, DoesNotFitError)
    assert (error.requested_bytes, error.segment_bytes) == (71 * MIB, 72 * MIB)
    assert (error.allocated_bytes, error.reserved_bytes, error.free_bytes) == (30 * MIB, 30 * MIB, 70 * MIB)
    allocator.malloc(2, 70 * MIB)
    assert allocator.statistics().num_ooms == 1


def test_fragmentation_makes_it_fail_where_expandable_segments_do_not() -> None:
    """40 MiB free in two holes do not hold 30 MiB; pages can be moved."""
    for expandable in (False, True):
        allocator = CachingAllocator(expandable=expandable, capacity_bytes=100 * MIB)
        for identity in range(20):
            allocator.malloc(identity, 5 * MIB)
        for identity in (4, 5, 6, 7, 12, 13, 14, 15):
            allocator.free(identity)
        for identity in (0, 1, 2, 8, 9, 10):  # leaves a block in each of these segments
            allocator.free(identity)
        allocator.malloc(50, 20 * MIB)
        if expandable:
            allocator.malloc(51, 30 * MIB)
        else:
            with pytest.raises(OutOfMemory) as caught:
                allocator.malloc(51, 30 * MIB)
            assert "expandable_segments" in caught.value.hint


def test_fraction_limits_with_the_segment_size() -> None:
    """`set_per_process_memory_fraction`: with expandable segments too, a segment of 20 MiB is what is checked."""
    for expandable in (False, True):
        allocator = CachingAllocator(expandable=expandable, capacity_bytes=100 * MIB, allowed_bytes=19 * MIB)
        allocator.malloc(0, 18 * MIB if not expandable else MIB)
        with pytest.raises(OutOfMemory, match="19 MiB allowed"):
            allocator.malloc(1, 2 * MIB)


def test_small_and_large_ranges_are_apart() -> None:
    allocator = CachingAllocator(expandable=True)
    allocator.malloc(0, 512)
    allocator.malloc(1, 2 * MIB)
    assert allocator.reserved_bytes == 22 * MIB


def test_a_second_range_when_the_addresses_run_out() -> None:
    """An expandable segment has addresses for 9/8 of the card: 460 MiB here. Two holes of 100 MiB do not hold 150; a new range does."""
    recorder = Recorder()
    allocator = CachingAllocator(expandable=True, capacity_bytes=400 * MIB, recorder=recorder)
    for identity, size in enumerate((100, 20, 100, 180)):
        allocator.malloc(identity, size * MIB)
    allocator.free(0)
    allocator.free(2)
    allocator.malloc(4, 150 * MIB)
    assert recorder.entries[-1].address - recorder.entries[0].address == 460 * MIB
    assert allocator.reserved_bytes == 360 * MIB
    assert allocator.statistics().num_alloc_retries == 1


def test_zero_bytes_is_a_tensor_without_memory() -> None:
    allocator = CachingAllocator()
    allocator.malloc(0, 0)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (0, 0)
    allocator.free(0)
    with pytest.raises(UsageError):
        allocator.free(0)


@pytest.mark.parametrize("size", [-1, 2**60])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(UsageError, match="allocation of"):
        CachingAllocator().malloc(0, size)


def test_unknown_and_double_free_and_double_allocation() -> None:
    allocator = CachingAllocator()
    with pytest.raises(UsageError, match="free of 7"):
        allocator.free(7)
    allocator.malloc(7, KIB)
    with pytest.raises(UsageError, match="allocated already"):
        allocator.malloc(7, KIB)
    allocator.free(7)
    with pytest.raises(UsageError, match="free of 7"):
        allocator.free(7)
    allocator.malloc(7, KIB)


def test_reset_peak() -> None:
    allocator = CachingAllocator()
    allocator.malloc(0, 64 * MIB)
    allocator.malloc(1, 32 * MIB)
    allocator.free(0)
    allocator.empty_cache()
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (96 * MIB, 96 * MIB)
    allocator.reset_peak()
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (32 * MIB, 32 * MIB)
