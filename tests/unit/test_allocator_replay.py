"""Replaying streams: peaks by phase, running out of memory, and the regrowth of a KV cache."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llamamath.errors import UsageError
from llamamath.planner.allocator import Event, OutOfMemory, alloc, free, phase, replay
from llamamath.units import GIB, MIB


def test_peaks_by_phase() -> None:
    result = replay(
        [
            alloc(0, 20 * MIB),
            phase("forward"),
            alloc(1, 40 * MIB),
            alloc(2, 30 * MIB),
            free(1),
            phase("backward"),
            alloc(3, 10 * MIB),
            free(2),
            phase("forward"),
            alloc(4, 100 * MIB),
        ]
    )
    assert [(peak.name, peak.peak_allocated_bytes // MIB, peak.worst_event) for peak in result.phases] == [
        ("start", 20, 0),
        ("forward", 130, 9),
        ("backward", 60, 6),
    ]
    assert [peak.peak_reserved_bytes // MIB for peak in result.phases] == [20, 190, 90]
    assert result.fits
    assert result.peak_phase.name == "forward"
    assert result.phase("backward") is result.phases[2]
    assert result.phase("merge") is None
    assert (result.peak_allocated_bytes, result.peak_reserved_bytes, result.num_events) == (130 * MIB, 190 * MIB, 10)


def test_a_phase_counts_what_it_begins_with() -> None:
    result = replay([phase("forward"), alloc(0, 32 * MIB), phase("optimizer"), free(0)])
    assert [(peak.name, peak.peak_allocated_bytes, peak.worst_event) for peak in result.phases] == [
        ("forward", 32 * MIB, 1),
        ("optimizer", 32 * MIB, 2),
    ]


def test_initial_does_not_count_but_stays() -> None:
    initial = [alloc(0, 64 * MIB), alloc(1, 32 * MIB), free(0)]
    result = replay([phase("forward"), alloc(2, 10 * MIB), free(1)], initial=initial)
    assert [peak.name for peak in result.phases] == ["forward"]
    assert (result.peak_allocated_bytes, result.peak_reserved_bytes) == (42 * MIB, 96 * MIB)
    with pytest.raises(OutOfMemory):
        replay([], initial=initial, capacity_bytes=64 * MIB)


def test_it_stops_where_memory_runs_out() -> None:
    events = [phase("forward"), alloc(0, 60 * MIB), phase("backward"), alloc(1, 60 * MIB, "gradient"), free(0)]
    result = replay(events, capacity_bytes=100 * MIB)
    assert not result.fits
    where = result.out_of_memory
    assert where is not None
    assert (where.event, where.phase, where.label, where.requested_bytes) == (3, "backward", "gradient", 60 * MIB)
    assert (where.allocated_bytes, where.reserved_bytes, where.free_bytes) == (60 * MIB, 60 * MIB, 40 * MIB)
    assert result.num_events == 4
    assert result.final.num_ooms == 1
    assert replay(events, capacity_bytes=120 * MIB).fits


def test_empty_stream() -> None:
    result = replay([])
    assert (result.peak_allocated_bytes, result.num_events, result.peak_phase.worst_event) == (0, 0, -1)


def test_streams_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="free of 3"):
        replay([free(3)])
    with pytest.raises(UsageError, match="unknown kind 'malloc'"):
        replay([Event("malloc", 1, 2)])  # type: ignore[arg-type]


def regrown_cache(*, rows: int, first: int, last: int, layers: int, kv_heads: int, head_dim: int, item_bytes: int) -> Iterator[Event]:
    """transformers' DynamicCache: at every token each layer's keys and then values are replaced by `cat` of the old and one more.

    The new tensor [rows, kv_heads, length, head_dim] is there before the old one goes.
    """
    identity, live = 0, dict[tuple[int, str], int]()
    for length in range(first, last + 1):
        for layer in range(layers):
            for part in ("keys", "values"):
                yield alloc(identity, rows * kv_heads * length * head_dim * item_bytes, "kv_cache")
                if (layer, part) in live:
                    yield free(live[layer, part])
                live[layer, part] = identity
                identity += 1


LLAMA_3_2_1B = {"rows": 64, "first": 256, "last": 1280, "layers": 16, "kv_heads": 8, "head_dim": 64, "item_bytes": 2}


@pytest.mark.parametrize(("expandable", "reserved"), [(False, 54_794_387_456), (True, 2_852_126_720)])
def test_regrowing_cache(expandable: bool, reserved: int) -> None:
    """Every new tensor is larger than every free block: 52,256 MiB for 2,640 MiB of cache; 2,720 MiB with expandable segments.

    The numbers are those of PyTorch 2.13.0's compiled allocator on the same stream (see fixtures/allocator/README.md). Where "52 GiB for
    2.6 GiB, 2.7 with expandable segments" is said of it, MiB were divided by 1000.
    """
    result = replay(regrown_cache(**LLAMA_3_2_1B), expandable=expandable)
    assert result.peak_reserved_bytes == reserved
    assert result.peak_allocated_bytes // MIB == (2639 if expandable else 2640)
    assert result.final.num_alloc_retries == 0


@pytest.mark.parametrize("capacity_gib", [3, 4, 8, 24])
def test_regrowing_cache_fits_where_the_unlimited_replay_says_it_does_not(capacity_gib: int) -> None:
    """With a capacity the cache of blocks is given back and the same stream runs in 3 GiB: judge rollouts with one."""
    result = replay(regrown_cache(**LLAMA_3_2_1B), capacity_bytes=capacity_gib * GIB)
    assert result.fits
    assert result.peak_reserved_bytes <= capacity_gib * GIB
    assert 0 < result.final.num_alloc_retries < 60
