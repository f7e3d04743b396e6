"""The history of an allocator: PyTorch's trace entries.

Source: torch 2.13, `c10/core/CachingDeviceAllocator.h` `TraceEntry`: an allocation carries the size that was requested, not the block's.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Action = Literal[
    "alloc", "free_requested", "free_completed", "segment_alloc", "segment_free", "segment_map", "segment_unmap", "oom", "snapshot"
]


class TraceEntry(NamedTuple):
    """One action. `address` is the device's free memory for `oom`. A named tuple: there are millions."""

    action: Action
    address: int
    size_bytes: int
    label: str
    phase: str


class Recorder:
    """Collects trace entries; `phase` is stamped on each."""

    __slots__ = ("entries", "phase")

    def __init__(self) -> None:
        self.entries: list[TraceEntry] = []
        self.phase = ""

    def record(self, action: Action, address: int, size_bytes: int, label: str) -> None:
        """Append one."""
        self.entries.append(TraceEntry(action, address, size_bytes, label, self.phase))
