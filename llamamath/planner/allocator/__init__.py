"""A model of PyTorch's CUDA caching allocator, on numbers: no torch, no GPU.

sizes.py       rounding, pools, segments      blocks.py      blocks, the index of free ones
device.py      the driver behind it           caching.py     malloc, free, release-and-retry
expandable.py  expandable segments            statistics.py  counters, OutOfMemory
events.py      the stream of a training step  replay.py      per-phase peaks of a stream
recorder.py    history                        snapshot.py    history and state for pytorch.org/memory_viz

Written from torch 2.13's `c10/cuda/CUDACachingAllocator.cpp` and compared with it: the compiled allocator of the torch 2.13.0+cu130 wheel
ran 5,000 random streams (5.8 million operations, both modes, with capacities, fractions, out-of-memory and `empty_cache`) on a stand-in
for the CUDA driver, and this model gave the same address for every allocation and the same counters after every operation.
tests/fixtures/allocator holds ten such streams.
"""

from __future__ import annotations

from llamamath.planner.allocator.caching import CachingAllocator
from llamamath.planner.allocator.events import Event, alloc, free, phase
from llamamath.planner.allocator.recorder import Recorder
from llamamath.planner.allocator.replay import OutOfMemoryAt, PhasePeak, Replay, replay, replay_on
from llamamath.planner.allocator.snapshot import snapshot, snapshot_bytes, write_snapshot
from llamamath.planner.allocator.statistics import OutOfMemory, Statistics

__all__ = [
    "CachingAllocator",
    "Event",
    "OutOfMemory",
    "OutOfMemoryAt",
    "PhasePeak",
    "Recorder",
    "Replay",
    "Statistics",
    "alloc",
    "free",
    "phase",
    "replay",
    "replay_on",
    "snapshot",
    "snapshot_bytes",
    "write_snapshot",
]
