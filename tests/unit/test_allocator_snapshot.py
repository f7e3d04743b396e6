"""The snapshot: PyTorch's structure, readable by pytorch.org/memory_viz and by torch's own tools."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path

import pytest

from llamamath.errors import UnavailableError
from llamamath.planner.allocator import (
    CachingAllocator,
    Event,
    Recorder,
    alloc,
    free,
    phase,
    replay_on,
    snapshot,
    snapshot_bytes,
    write_snapshot,
)
from llamamath.planner.allocator.snapshot import Snapshot
from llamamath.units import MIB

PAGE_OPCODES = {
    "APPEND",
    "APPENDS",
    "BINFLOAT",
    "BINGET",
    "BININT",
    "BININT1",
    "BININT2",
    "BINPUT",
    "BINUNICODE",
    "DICT",
    "EMPTY_DICT",
    "EMPTY_LIST",
    "EMPTY_TUPLE",
    "FRAME",
    "LIST",
    "LONG1",
    "LONG_BINGET",
    "LONG_BINPUT",
    "MARK",
    "MEMOIZE",
    "NEWFALSE",
    "NEWTRUE",
    "NONE",
    "PROTO",
    "SETITEM",
    "SETITEMS",
    "SHORT_BINUNICODE",
    "STOP",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
}
"""What the unpickler of the page knows: torch/utils/viz/MemoryViz.js, function unpickle, read at pytorch 00067369."""

EVENTS: list[Event] = [
    phase("build"),
    alloc(0, 30 * MIB, "base_weights/q_proj"),
    alloc(1, 700, "lora"),
    phase("forward"),
    alloc(2, 50 * MIB, "activation/silu"),
    alloc(3, 3 * MIB, "activation"),
    free(2),
    alloc(4, 60 * MIB, "logits"),
]


def recorded(expandable: bool = False, capacity_bytes: int | None = 120 * MIB, events: list[Event] | None = None) -> CachingAllocator:
    allocator = CachingAllocator(expandable=expandable, capacity_bytes=capacity_bytes, recorder=Recorder())
    replay_on(allocator, EVENTS if events is None else events)
    return allocator


def test_segments_and_blocks() -> None:
    allocator = CachingAllocator(recorder=Recorder())
    replay_on(allocator, EVENTS[:-1])
    segments = snapshot(allocator)["segments"]
    assert [(s["segment_type"], s["total_size"] // MIB, s["allocated_size"], s["requested_size"]) for s in segments] == [
        ("large", 30, 30 * MIB, 30 * MIB),
        ("small", 2, 1024, 700),
        ("large", 50, 0, 0),
        ("large", 20, 3 * MIB, 3 * MIB),
    ]
    first, second = segments[3]["blocks"]
    assert (first["state"], first["size"], first["frames"][0]["name"]) == ("active_allocated", 3 * MIB, "activation")
    assert (second["state"], second["size"], second["address"]) == ("inactive", 17 * MIB, first["address"] + 3 * MIB)


@pytest.mark.parametrize("expandable", [False, True])
def test_history_leads_to_the_state(expandable: bool) -> None:
    """The page works backwards from the final state: undone to the begin, nothing is left."""
    allocator = recorded(expandable)
    result = snapshot(allocator)
    blocks, mapped = undone(result)
    assert blocks == {}
    assert mapped == set()
    assert [entry["action"] for entry in result["device_traces"][0]][-1] == "snapshot"


def undone(result: Snapshot) -> tuple[dict[int, int], set[int]]:
    """Blocks (address -> requested) and mapped MiB before the history, as MemoryViz.js `simulate_memory` goes back."""
    blocks: dict[int, int] = {}
    mapped: set[int] = set()
    for segment in result["segments"]:
        mapped |= set(range(segment["address"] // MIB, (segment["address"] + segment["total_size"]) // MIB))
        blocks |= {block["address"]: block["requested_size"] for block in segment["blocks"] if block["state"] == "active_allocated"}
    for entry in reversed(result["device_traces"][0]):
        address, size = entry.get("addr", 0), entry["size"]
        pages = set(range(address // MIB, (address + size) // MIB))
        match entry["action"]:
            case "alloc":
                assert blocks.pop(address) == size
            case "free_completed":
                assert address not in blocks
                blocks[address] = size
            case "segment_alloc" | "segment_map":
                assert pages <= mapped
                mapped -= pages
            case "segment_free" | "segment_unmap":
                assert not pages & mapped
                mapped |= pages
    return blocks, mapped


def test_release_and_retry_is_in_the_history() -> None:
    actions = [entry["action"] for entry in snapshot(recorded())["device_traces"][0]]
    assert actions.index("segment_free") < len(actions) - 1
    assert actions.count("segment_alloc") == 5


def test_out_of_memory_is_in_the_history() -> None:
    allocator = recorded(capacity_bytes=110 * MIB)
    entry = next(entry for entry in snapshot(allocator)["device_traces"][0] if entry["action"] == "oom")
    assert "addr" not in entry
    assert entry["device_free"] == 110 * MIB - 52 * MIB
    assert entry["size"] == 60 * MIB


def test_labels_become_categories_and_phases_annotations() -> None:
    result = snapshot(recorded(capacity_bytes=None))
    trace = result["device_traces"][0]
    first = next(entry for entry in trace if entry["action"] == "alloc")
    assert first["category"] == "base_weights"
    assert first["frames"] == [{"filename": "build", "line": 0, "name": "base_weights/q_proj"}]
    assert trace[-1]["category"] == "unknown"  # without it the page fails on categories
    assert [(a["name"], a["stage"]) for a in result["external_annotations"]] == [
        ("build", "START"),
        ("build", "END"),
        ("forward", "START"),
        ("forward", "END"),
    ]


def test_without_labels_there_are_no_categories() -> None:
    trace = snapshot(recorded(events=[alloc(0, MIB), free(0)]))["device_traces"][0]
    assert all("category" not in entry for entry in trace)


def test_the_last_entries_only() -> None:
    whole = snapshot(recorded(capacity_bytes=None))["device_traces"][0]
    part = snapshot(recorded(capacity_bytes=None), max_entries=3)["device_traces"][0]
    assert part == whole[-4:]


def test_without_a_recorder_there_is_the_state() -> None:
    allocator = CachingAllocator()
    allocator.malloc(0, 5)
    result = snapshot(allocator)
    assert result["device_traces"] == [[]]
    assert result["segments"][0]["allocated_size"] == 512


def test_the_page_can_unpickle_it() -> None:
    many = [alloc(identity, identity * 4097 + 1, f"activation/{identity % 300}") for identity in range(2000)]
    data = snapshot_bytes(recorded(True, None, many))
    operations = list(pickletools.genops(data))
    assert {opcode.name for opcode, _, _ in operations} <= PAGE_OPCODES
    assert all(abs(argument) < 2**53 for opcode, argument, _ in operations if isinstance(argument, int) and opcode.name != "FRAME")
    assert pickle.loads(data)["device_traces"][0][0]["action"] == "segment_map"


def test_write(tmp_path: Path) -> None:
    allocator = recorded()
    write_snapshot(tmp_path / "step.pickle", allocator)
    assert pickle.loads((tmp_path / "step.pickle").read_bytes()) == snapshot(allocator)
    with pytest.raises(UnavailableError, match="cannot write"):
        write_snapshot(tmp_path / "no" / "step.pickle", allocator)


def test_torch_reads_it() -> None:
    """torch's own text reports, where torch is installed."""
    pytest.importorskip("torch")
    from torch.cuda import _memory_viz

    data = pickle.loads(snapshot_bytes(recorded(True)))
    assert "total_reserved: " in _memory_viz.segsum(data)
    assert "segment_map" not in _memory_viz.trace(pickle.loads(snapshot_bytes(recorded(False))))
    assert _memory_viz.trace_plot(data)
