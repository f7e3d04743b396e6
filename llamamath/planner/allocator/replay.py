"""Replaying a stream of events through the allocator: what each phase allocates and reserves, and where memory runs out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llamamath.errors import UsageError
from llamamath.planner.allocator.caching import CachingAllocator
from llamamath.planner.allocator.events import Event
from llamamath.planner.allocator.statistics import OutOfMemory, Statistics

START = "start"
"""The phase of events before the first phase event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePeak:
    """The worst of one phase: what `max_memory_allocated` and `max_memory_reserved` would say, had the peaks been reset at its begin.

    A phase that begins several times is counted once, with its worst.
    """

    name: str
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    worst_event: int
    """Index of the event that reached the allocated peak: an allocation, or the begin of the phase when nothing rose above that. -1: the
    state before the first event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemoryAt:
    """The allocation at which memory ran out, and the allocator's state then."""

    event: int
    phase: str
    label: str
    requested_bytes: int
    segment_bytes: int
    """What the driver was asked for: PyTorch's "Tried to allocate"."""
    allocated_bytes: int
    reserved_bytes: int
    free_bytes: int | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A stream of events, replayed to its end or until memory ran out. `phases` are in order of their first begin.

    `final` is the state at the end; its peaks are those since the last begin of a phase, the ones over all phases are here.
    """

    phases: tuple[PhasePeak, ...]
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    final: Statistics
    out_of_memory: OutOfMemoryAt | None
    num_events: int

    @property
    def fits(self) -> bool:
        """Whether every allocation was served."""
        return self.out_of_memory is None

    @property
    def peak_phase(self) -> PhasePeak:
        """The phase with the highest allocated peak, the first of several equal ones."""
        return max(self.phases, key=lambda phase: phase.peak_allocated_bytes)

    def phase(self, name: str) -> PhasePeak | None:
        """The phase of that name, if it began."""
        return next((phase for phase in self.phases if phase.name == name), None)


def replay(
    events: Iterable[Event],
    *,
    expandable: bool = False,
    capacity_bytes: int | None = None,
    allowed_bytes: int | None = None,
    initial: Iterable[Event] = (),
) -> Replay:
    """Replay `events` through a new allocator (see CachingAllocator for its limits), after `initial`, whose peaks do not count.

    `initial` is what is there before the first phase: a loaded model, cuBLAS workspaces. Raises UsageError for events that cannot be (an
    unknown free, an id allocated twice) and OutOfMemory when `initial` does not fit.
    """
    allocator = CachingAllocator(expandable=expandable, capacity_bytes=capacity_bytes, allowed_bytes=allowed_bytes)
    for kind, identity, size_bytes, label in initial:
        if kind == "alloc":
            allocator.malloc(identity, size_bytes, label)
        elif kind == "free":
            allocator.free(identity)
    return replay_on(allocator, events)


def replay_on(allocator: CachingAllocator, events: Iterable[Event]) -> Replay:
    """Replay `events` through `allocator`, from the state it is in. Stops where memory runs out: that is an answer, not an error."""
    peaks: dict[str, PhasePeak] = {}
    name, index, worst, highest = START, -1, -1, allocator.allocated_bytes
    out_of_memory: OutOfMemoryAt | None = None
    malloc, free, recorder = allocator.malloc, allocator.free, allocator.recorder
    allocator.reset_peak()
    if recorder is not None:
        recorder.phase = name
    for index, (kind, identity, size_bytes, label) in enumerate(events):
        if kind == "alloc":
            try:
                malloc(identity, size_bytes, label)
            except OutOfMemory as error:
                out_of_memory = _where(error, index, name, label)
                break
            if allocator.allocated_bytes > highest:
                highest, worst = allocator.allocated_bytes, index
        elif kind == "free":
            free(identity)
        elif kind == "phase":
            if index > 0:  # a stream that begins with a phase has no START
                _close(peaks, name, allocator, worst)
            allocator.reset_peak()
            name, worst, highest = label, index, allocator.allocated_bytes
            if recorder is not None:
                recorder.phase = name
        else:
            raise UsageError(f"event {index}: unknown kind {kind!r}", "a kind is alloc, free or phase")
    _close(peaks, name, allocator, worst)
    return Replay(
        phases=tuple(peaks.values()),
        peak_allocated_bytes=max(peak.peak_allocated_bytes for peak in peaks.values()),
        peak_reserved_bytes=max(peak.peak_reserved_bytes for peak in peaks.values()),
        final=allocator.statistics(),
        out_of_memory=out_of_memory,
        num_events=index + 1,
    )


def _close(peaks: dict[str, PhasePeak], name: str, allocator: CachingAllocator, worst_event: int) -> None:
    """Account for the phase that ends: the worse of this time and earlier ones."""
    allocated, reserved = allocator.peak_allocated_bytes, allocator.peak_reserved_bytes
    earlier = peaks.get(name)
    if earlier is not None:
        if earlier.peak_allocated_bytes >= allocated:
            allocated, worst_event = earlier.peak_allocated_bytes, earlier.worst_event
        reserved = max(reserved, earlier.peak_reserved_bytes)
    peaks[name] = PhasePeak(name=name, peak_allocated_bytes=allocated, peak_reserved_bytes=reserved, worst_event=worst_event)


def _where(error: OutOfMemory, index: int, phase: str, label: str) -> OutOfMemoryAt:
    return OutOfMemoryAt(
        event=index,
        phase=phase,
        label=label,
        requested_bytes=error.requested_bytes,
        segment_bytes=error.segment_bytes,
        allocated_bytes=error.allocated_bytes,
        reserved_bytes=error.reserved_bytes,
        free_bytes=error.free_bytes,
        message=error.message,
    )
