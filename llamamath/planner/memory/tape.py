"""The event stream of one micro-batch: every allocation and release of a symbolic training step, all layers walked.

The maxima that `walk.py` keeps say what is allocated; what the caching allocator *reserves* depends on the order of requests, and
does not extrapolate from layer to layer. So here the whole depth is walked once per settings, and replayed at any batch and length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from llamamath.planner.architecture import Architecture
from llamamath.planner.memory.polynomial import Size
from llamamath.planner.memory.settings import Settings
from llamamath.planner.memory.walk import Walk


@dataclass(frozen=True, slots=True)
class Tape:
    """`events`: i > 0 allocates tensor i, of `sizes[i - 1]` bytes (a linear form); -i frees it.

    left: tensors alive at the end; those of them that are `gradients` outlive the micro-batch.
    """

    events: tuple[int, ...]
    sizes: tuple[Size, ...]
    left: tuple[int, ...]
    gradients: frozenset[int]


@lru_cache(maxsize=128)
def tape_of(architecture: Architecture, settings: Settings) -> Tape:
    """Forward, loss and backward of one micro-batch."""
    walk = Walk(architecture, settings, deep=True)
    recorder = walk.ledger.start_recording()
    walk.train_step()
    gradients = frozenset(buffer.entry for buffer in walk.graph.gradients)
    walk.ledger.stop_recording()
    freed = {-event for event in recorder.events if event < 0}
    left = tuple(entry for entry in range(1, len(recorder.sizes) + 1) if entry not in freed)
    return Tape(tuple(recorder.events), tuple(recorder.sizes), left, gradients)
