"""The allocator model against runs of PyTorch 2.13.0's compiled allocator: equal to the byte. See fixtures/allocator/README.md."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TypedDict

import pytest

from llamamath.planner.allocator import CachingAllocator, OutOfMemory, Recorder
from llamamath.planner.allocator.recorder import TraceEntry


class Stream(TypedDict):
    name: str
    expandable: bool
    device_bytes: int
    operations: list[str]
    results: list[str]
    counters: dict[str, dict[str, int]]


PATH = Path(__file__).parent.parent / "fixtures" / "allocator" / "streams.jsonl"
STREAMS: list[Stream] = [json.loads(line) for line in PATH.read_text().splitlines()]


def apply(allocator: CachingAllocator, recorder: Recorder, operation: str, device_bytes: int) -> tuple[int, int]:
    """Run one operation: (address, whether memory ran out)."""
    kind, *arguments = operation.split()
    if kind == "a":
        try:
            allocator.malloc(int(arguments[0]), int(arguments[1]))
        except OutOfMemory:
            return 0, 1
        return recorder.entries[-1].address, 0
    if kind == "f":
        allocator.free(int(arguments[0]))
    elif kind == "e":
        allocator.empty_cache()
    elif kind == "p":
        allocator.reset_peak()
    else:
        assert kind == "F"
        allocator.allowed_bytes = int(float(arguments[0]) * device_bytes)
    return 0, 0


@pytest.mark.parametrize("stream", STREAMS, ids=[stream["name"] for stream in STREAMS])
def test_same_addresses_and_counters(stream: Stream) -> None:
    recorder = Recorder()
    allocator = CachingAllocator(expandable=stream["expandable"], capacity_bytes=stream["device_bytes"], recorder=recorder)
    for index, (operation, expected) in enumerate(zip(stream["operations"], stream["results"], strict=True)):
        address, out_of_memory = apply(allocator, recorder, operation, stream["device_bytes"])
        found = f"{address:x} {out_of_memory} {allocator.allocated_bytes} {allocator.reserved_bytes}"
        assert found == expected, f"operation {index}: {operation}"
        counters = stream["counters"].get(str(index))
        if counters is not None:
            statistics = dataclasses.asdict(allocator.statistics())
            assert {name: statistics[name] for name in counters} == counters


def test_fixture_covers_what_is_claimed() -> None:
    finals = [stream["counters"][str(len(stream["operations"]) - 1)] for stream in STREAMS]
    for expandable in (False, True):
        chosen = [final for stream, final in zip(STREAMS, finals, strict=True) if stream["expandable"] is expandable]
        assert sum(final["num_ooms"] for final in chosen) > 3
        assert sum(final["num_alloc_retries"] for final in chosen) > 3
        assert sum(final["num_device_free"] for final in chosen) > 10
    assert any(operation.startswith("F") for stream in STREAMS for operation in stream["operations"])


def test_recorder_tells_the_same_story() -> None:
    """Segments begun minus segments ended is what is reserved; allocations minus frees what is requested."""
    stream = next(stream for stream in STREAMS if stream["name"].startswith("few expandable"))
    recorder = Recorder()
    allocator = CachingAllocator(expandable=True, capacity_bytes=stream["device_bytes"], recorder=recorder)
    for operation in stream["operations"]:
        apply(allocator, recorder, operation, stream["device_bytes"])
        if operation.startswith("a"):
            reserved = _sum(recorder.entries, "segment_map") - _sum(recorder.entries, "segment_unmap")
            assert reserved == allocator.reserved_bytes
            assert _sum(recorder.entries, "alloc") - _sum(recorder.entries, "free_completed") == allocator.requested_bytes


def _sum(entries: list[TraceEntry], action: str) -> int:
    return sum(entry.size_bytes for entry in entries if entry.action == action)
