"""Laws of the allocator, whatever the stream: nothing overlaps, nothing is lost, limits hold.

Not a law: "what fits in C fits in more than C". A smaller capacity empties the cache earlier, which may leave less fragmentation later
(`test_more_capacity_may_not_fit`). What does hold: a capacity of at least what the unlimited replay reserves
changes nothing, and one below the largest sum of blocks cannot fit.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamath.errors import UsageError
from llamamath.planner.allocator import CachingAllocator, Event, OutOfMemory, alloc, free, phase, replay, snapshot
from llamamath.planner.allocator.blocks import Block
from llamamath.planner.allocator.sizes import round_size
from llamamath.units import MIB

SIZES = st.one_of(
    st.integers(0, 4096),
    st.integers(1, 3 * MIB),
    st.integers(MIB, 64 * MIB),
    st.sampled_from([512, MIB, MIB + 1, 10 * MIB - 512, 10 * MIB, 19 * MIB, 20 * MIB, 21 * MIB]),
)


@st.composite
def operations(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """`("alloc", id, size)`, `("free", id, 0)` and `("empty", 0, 0)`, each id freed at most once and after its allocation."""
    chosen: list[tuple[str, int, int]] = []
    live: list[int] = []
    for identity, (kind, size, pick) in enumerate(
        draw(st.lists(st.tuples(st.sampled_from("aaaaafffe"), SIZES, st.integers(0, 10**6)), max_size=60))
    ):
        if kind == "a":
            chosen.append(("alloc", identity, size))
            live.append(identity)
        elif kind == "f" and live:
            chosen.append(("free", live.pop(pick % len(live)), 0))
        elif kind == "e":
            chosen.append(("empty", 0, 0))
    return chosen


LIMITS = st.one_of(st.none(), st.integers(1, 300).map(lambda size: size * MIB))


def rows(allocator: CachingAllocator) -> list[list[Block]]:
    """The blocks of each segment in order, unmapped ones included."""
    heads: dict[int, Block] = {}
    for block in allocator.blocks():
        head = block
        while head.prev is not None:
            head = head.prev
        heads[id(head)] = head
    found = []
    for head in heads.values():
        row: list[Block] = []
        current: Block | None = head
        while current is not None:
            row.append(current)
            current = current.next
        found.append(row)
    return found


def check(allocator: CachingAllocator, live: dict[int, int]) -> None:
    """Everything that must hold after any operation; `live` maps ids to requested sizes."""
    blocks = sorted(allocator.blocks(), key=lambda block: block.address)
    for before, after in pairwise(blocks):
        assert before.address + before.size <= after.address, "blocks overlap"
    used = [block for block in blocks if not block.free]
    assert allocator.allocated_bytes == sum(block.size for block in used)
    assert allocator.requested_bytes == sum(live.values()) == sum(block.requested for block in used)
    assert len(used) == sum(1 for size in live.values() if size)
    assert allocator.reserved_bytes == sum(block.size for block in blocks)
    assert allocator.allocated_bytes <= allocator.reserved_bytes
    if allocator.device.capacity_bytes is not None:
        assert allocator.reserved_bytes <= allocator.device.capacity_bytes
    assert allocator.peak_allocated_bytes >= allocator.allocated_bytes
    assert allocator.peak_reserved_bytes >= allocator.reserved_bytes
    for block in used:
        assert block.size >= round_size(block.requested)
        assert block.size - round_size(block.requested) <= (0 if allocator.expandable else MIB)
    for row in rows(allocator):
        assert row[0].prev is None
        for before, after in pairwise(row):
            assert before.address + before.size == after.address, "blocks of a segment leave a gap"
            assert after.prev is before
            assert not (before.free and after.free), "free neighbours were not united"
            assert before.mapped or after.mapped, "unmapped neighbours were not united"
        if row[0].segment is None:
            assert sum(block.size for block in row) % (2 * MIB) == 0
        else:
            assert sum(block.size for block in row) == row[0].segment.size
            page = row[0].pool.page_bytes
            assert all((block.address - row[0].address) % page == 0 == block.size % page for block in row if not block.mapped)
    for segment in snapshot(allocator)["segments"]:
        assert segment["total_size"] == sum(block["size"] for block in segment["blocks"])


def run(allocator: CachingAllocator, stream: list[tuple[str, int, int]], checked: bool = True) -> dict[int, int]:
    """Run a stream, going on after an out-of-memory as a program may; returns what is alive."""
    live: dict[int, int] = {}
    for kind, identity, size in stream:
        if kind == "alloc":
            try:
                allocator.malloc(identity, size)
                live[identity] = size
            except OutOfMemory as error:
                assert error.requested_bytes == size
                assert error.free_bytes is not None or error.allowed_bytes is not None
        elif kind == "free":
            if identity in live:
                allocator.free(identity)
                del live[identity]
        else:
            allocator.empty_cache()
        if checked:
            check(allocator, live)
    return live


@settings(max_examples=150, deadline=None)
@given(stream=operations(), expandable=st.booleans(), capacity=LIMITS, allowed=LIMITS)
def test_invariants_after_every_operation(
    stream: list[tuple[str, int, int]], expandable: bool, capacity: int | None, allowed: int | None
) -> None:
    allocator = CachingAllocator(expandable=expandable, capacity_bytes=capacity, allowed_bytes=allowed)
    run(allocator, stream)
    if allowed is not None and not expandable:
        assert allocator.peak_reserved_bytes <= allowed


@given(stream=operations(), expandable=st.booleans(), capacity=LIMITS)
def test_everything_freed_leaves_nothing(stream: list[tuple[str, int, int]], expandable: bool, capacity: int | None) -> None:
    allocator = CachingAllocator(expandable=expandable, capacity_bytes=capacity)
    for identity in run(allocator, stream, checked=False):
        allocator.free(identity)
    assert allocator.allocated_bytes == allocator.requested_bytes == 0
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0
    assert list(allocator.blocks()) == []
    statistics = allocator.statistics()
    assert statistics.num_segments == statistics.num_allocations == statistics.inactive_split_bytes == 0
    if not expandable:
        assert statistics.num_device_alloc == statistics.num_device_free


@given(stream=operations(), expandable=st.booleans(), capacity=LIMITS)
def test_deterministic(stream: list[tuple[str, int, int]], expandable: bool, capacity: int | None) -> None:
    first = CachingAllocator(expandable=expandable, capacity_bytes=capacity)
    second = CachingAllocator(expandable=expandable, capacity_bytes=capacity)
    run(first, stream, checked=False)
    run(second, stream, checked=False)
    assert snapshot(first) == snapshot(second)
    assert first.statistics() == second.statistics()


@given(stream=operations(), expandable=st.booleans())
def test_freeing_twice_is_an_error(stream: list[tuple[str, int, int]], expandable: bool) -> None:
    allocator = CachingAllocator(expandable=expandable)
    live = run(allocator, stream, checked=False)
    gone = [identity for kind, identity, _ in stream if kind == "alloc" and identity not in live]
    before = allocator.statistics()
    for identity in [*gone, -1]:
        with pytest.raises(UsageError):
            allocator.free(identity)
    for identity in live:
        with pytest.raises(UsageError):
            allocator.malloc(identity, 1)
    assert allocator.statistics() == before


def as_events(stream: list[tuple[str, int, int]]) -> list[Event]:
    """The stream without its `empty`, with phases."""
    events = [phase("first")]
    for number, (kind, identity, size) in enumerate(stream):
        if number % 7 == 3:
            events.append(phase(f"phase {number % 3}"))
        if kind != "empty":
            events.append(alloc(identity, size) if kind == "alloc" else free(identity))
    return events


@given(stream=operations(), expandable=st.booleans(), spare=st.integers(0, 64))
def test_a_capacity_above_what_is_reserved_changes_nothing(stream: list[tuple[str, int, int]], expandable: bool, spare: int) -> None:
    events = as_events(stream)
    unlimited = replay(events, expandable=expandable)
    needed = max(unlimited.peak_reserved_bytes, 32 * MIB)
    if not expandable:  # the capacity also bounds an expandable segment's addresses
        assert replay(events, expandable=expandable, capacity_bytes=needed + spare * MIB) == unlimited
    assert replay(events, expandable=expandable, capacity_bytes=8 * needed).peak_reserved_bytes == unlimited.peak_reserved_bytes


@given(stream=operations(), expandable=st.booleans(), part=st.floats(0.1, 0.99))
def test_less_than_the_sum_of_blocks_cannot_fit(stream: list[tuple[str, int, int]], expandable: bool, part: float) -> None:
    live: dict[int, int] = {}
    most = 0
    for kind, identity, size in stream:
        if kind == "alloc":
            live[identity] = round_size(size) if size else 0
        live.pop(identity, 0) if kind == "free" else 0
        most = max(most, sum(live.values()))
    capacity = int(most * part)
    if capacity:
        result = replay(as_events(stream), expandable=expandable, capacity_bytes=capacity)
        assert not result.fits
        assert result.peak_reserved_bytes <= capacity
        assert result.final.num_ooms == 1


@given(stream=operations(), capacity=LIMITS, expandable=st.booleans())
def test_peaks_of_phases(stream: list[tuple[str, int, int]], capacity: int | None, expandable: bool) -> None:
    result = replay(as_events(stream), expandable=expandable, capacity_bytes=capacity)
    assert result.peak_allocated_bytes == max(peak.peak_allocated_bytes for peak in result.phases)
    assert result.peak_phase.peak_allocated_bytes == result.peak_allocated_bytes
    for peak in result.phases:
        assert peak.peak_allocated_bytes <= peak.peak_reserved_bytes <= (capacity or peak.peak_reserved_bytes)
        assert -1 <= peak.worst_event < result.num_events
    assert result.final.allocated_bytes <= result.peak_allocated_bytes


def test_more_capacity_may_not_fit() -> None:
    """In 72 MiB the 20 MiB block lands in the cached segment of 30 and pins it; in 70 MiB that segment had to go already."""
    stream = [alloc(0, 30 * MIB), free(0), alloc(1, 42 * MIB), alloc(2, 20 * MIB), free(1), alloc(3, 50 * MIB)]
    assert replay(stream, capacity_bytes=70 * MIB).fits
    assert not replay(stream, capacity_bytes=72 * MIB).fits
