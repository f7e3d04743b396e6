"""The allocator's state and history as PyTorch's memory snapshot, for https://pytorch.org/memory_viz.

Source: torch 2.13, the docstring of `torch.cuda.memory._snapshot` (the structure), `DeviceCachingAllocator::snapshot` (which blocks make a
segment), and `torch/utils/viz/MemoryViz.js` (what the page reads: its unpickler knows protocol 2 to 4 and no classes; `frames` become the
text of an allocation; a `category` its colour and legend). The page works backwards from the final state, so the history must reach up to
it; what happened before the history began is shown as "initially allocated".

A label `component/detail` becomes the category `component`; the phase stands where the file name of a stack frame would. The history ends
with an entry of category `unknown`: the page fails on categories without that one.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import NotRequired, TypedDict

from llamamath.errors import UnavailableError
from llamamath.planner.allocator.blocks import Block
from llamamath.planner.allocator.caching import CachingAllocator
from llamamath.planner.allocator.recorder import TraceEntry

DEVICE = 0
STREAM = 0
POOL = (0, 0)


class Frame(TypedDict):
    """One line of a stack trace; here what is known of an allocation: phase and label."""

    filename: str
    line: int
    name: str


class BlockInfo(TypedDict):
    """A block: in use (`active_allocated`) or cached (`inactive`)."""

    address: int
    size: int
    requested_size: int
    state: str
    frames: list[Frame]


class SegmentInfo(TypedDict):
    """Memory the driver gave: one segment, or one stretch of pages of an expandable segment."""

    device: int
    address: int
    total_size: int
    allocated_size: int
    active_size: int
    requested_size: int
    stream: int
    segment_type: str
    segment_pool_id: tuple[int, int]
    is_expandable: bool
    frames: list[Frame]
    blocks: list[BlockInfo]


class EntryInfo(TypedDict):
    """One action of the history. `device_free` takes the place of `addr` for `oom`."""

    action: str
    addr: NotRequired[int]
    device_free: NotRequired[int]
    size: int
    stream: int
    pool_id: tuple[int, int]
    time_us: int
    frames: list[Frame]
    category: NotRequired[str]


class Annotation(TypedDict):
    """The begin or end of a phase."""

    device: int
    time_us: int
    name: str
    stage: str


class Snapshot(TypedDict):
    """What `torch.cuda.memory._snapshot()` returns."""

    segments: list[SegmentInfo]
    device_traces: list[list[EntryInfo]]
    allocator_settings: dict[str, bool | str]
    external_annotations: list[Annotation]


def snapshot(allocator: CachingAllocator, *, max_entries: int | None = None) -> Snapshot:
    """The state of `allocator` and, where it has a recorder, its history: the last `max_entries`, or all.

    `time_us` counts entries, there being no time. For a part of a step, stop the replay where that part ends.
    """
    entries = [] if allocator.recorder is None else allocator.recorder.entries
    first = 0 if max_entries is None else max(0, len(entries) - max_entries)
    frames = _Frames()
    return {
        "segments": _segments(allocator.blocks(), frames),
        "device_traces": [_trace(entries[first:], first, frames)],
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": f"expandable_segments:{allocator.expandable}",
            "expandable_segments": allocator.expandable,
        },
        "external_annotations": _annotations(entries[first:], first),
    }


def snapshot_bytes(allocator: CachingAllocator, *, max_entries: int | None = None) -> bytes:
    """The snapshot as a pickle of plain dictionaries, lists, strings and integers, in the newest protocol the page reads."""
    return pickle.dumps(snapshot(allocator, max_entries=max_entries), protocol=4)


def write_snapshot(path: str | Path, allocator: CachingAllocator, *, max_entries: int | None = None) -> None:
    """Write the snapshot to `path`. Raises UnavailableError if the system refuses."""
    data = snapshot_bytes(allocator, max_entries=max_entries)
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror or error}", "name a file in a folder that exists") from error


class _Frames:
    """One list of frames per phase and label, shared: the pickle then holds each once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], list[Frame]] = {}

    def of(self, phase: str, label: str) -> list[Frame]:
        key = (phase, label)
        if key not in self._known:
            self._known[key] = [Frame(filename=phase, line=0, name=label or "unlabelled")]
        return self._known[key]


def _segments(blocks: Iterable[Block], frames: _Frames) -> list[SegmentInfo]:
    """Blocks -> segments by address. One begins where no memory lies before: at the head of a segment, or after unmapped addresses."""
    heads = [block for block in blocks if block.prev is None or not block.prev.mapped]
    return [_segment(head, frames) for head in sorted(heads, key=lambda head: head.address)]


def _segment(head: Block, frames: _Frames) -> SegmentInfo:
    row: list[Block] = []
    block: Block | None = head
    while block is not None and block.mapped:
        row.append(block)
        block = block.next
    allocated = sum(block.size for block in row if not block.free)
    return {
        "device": DEVICE,
        "address": head.address,
        "total_size": sum(block.size for block in row),
        "allocated_size": allocated,
        "active_size": allocated,
        "requested_size": sum(block.requested for block in row if not block.free),
        "stream": STREAM,
        "segment_type": "small" if head.pool.small else "large",
        "segment_pool_id": POOL,
        "is_expandable": head.segment is not None,
        "frames": [],
        "blocks": [
            {
                "address": block.address,
                "size": block.size,
                "requested_size": 0 if block.free else block.requested,
                "state": "inactive" if block.free else "active_allocated",
                "frames": [] if block.free else frames.of("", block.label),
            }
            for block in row
        ],
    }


def _trace(entries: list[TraceEntry], first: int, frames: _Frames) -> list[EntryInfo]:
    trace = [_entry(entry, first + offset, frames) for offset, entry in enumerate(entries)]
    if trace:
        label = "unknown" if any(entry.label for entry in entries) else ""
        trace.append(_entry(TraceEntry("snapshot", 0, 0, label, ""), first + len(entries), frames))
    return trace


def _entry(entry: TraceEntry, time_us: int, frames: _Frames) -> EntryInfo:
    info: EntryInfo = {
        "action": entry.action,
        "size": entry.size_bytes,
        "stream": STREAM,
        "pool_id": POOL,
        "time_us": time_us,
        "frames": frames.of(entry.phase, entry.label),
    }
    if entry.action == "oom":
        info["device_free"] = entry.address
    else:
        info["addr"] = entry.address
    if entry.label:
        info["category"] = entry.label.split("/", 1)[0]
    return info


def _annotations(entries: list[TraceEntry], first: int) -> list[Annotation]:
    annotations: list[Annotation] = []
    for name, group in groupby(enumerate(entries, first), key=lambda pair: pair[1].phase):
        times = [time for time, _ in group]
        if name:
            annotations.append({"device": DEVICE, "time_us": times[0], "name": name, "stage": "START"})
            annotations.append({"device": DEVICE, "time_us": times[-1], "name": name, "stage": "END"})
    return annotations
