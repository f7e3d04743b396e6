"""What the allocator counts, and what it says when memory runs out. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from llamamath.errors import DoesNotFitError
from llamamath.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counters at one instant, with the meaning of `torch.cuda.memory_stats`' `.all.` entries.

    `allocated` counts blocks, `requested` what was asked for before rounding, `reserved` what the driver has given. `num_segments` and the
    inactive splits are 0 with expandable segments, as PyTorch counts them.
    """

    allocated_bytes: int
    peak_allocated_bytes: int
    reserved_bytes: int
    peak_reserved_bytes: int
    requested_bytes: int
    inactive_split_bytes: int
    """Cached, but in a segment that is partly in use: cannot be given back."""
    num_allocations: int
    num_segments: int
    num_inactive_splits: int
    num_alloc_retries: int
    """How often the cache was emptied because the driver had nothing left: each costs a synchronisation."""
    num_ooms: int
    num_device_alloc: int
    num_device_free: int


class OutOfMemory(DoesNotFitError):
    """Nothing could satisfy a request, not even after the cache was emptied. The numbers are those of PyTorch's message."""

    def __init__(
        self,
        *,
        requested_bytes: int,
        segment_bytes: int,
        allocated_bytes: int,
        reserved_bytes: int,
        free_bytes: int | None,
        allowed_bytes: int | None,
    ) -> None:
        limit = "" if free_bytes is None else f", {format_bytes(free_bytes)} free"
        if allowed_bytes is not None:
            limit += f", {format_bytes(allowed_bytes)} allowed"
        unused = reserved_bytes - allocated_bytes
        super().__init__(
            f"out of memory: tried to allocate {format_bytes(segment_bytes)} with {format_bytes(allocated_bytes)} allocated and "
            f"{format_bytes(unused)} reserved but unallocated{limit}",
            "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True against fragmentation" if unused >= segment_bytes else "",
        )
        self.requested_bytes = requested_bytes
        self.segment_bytes = segment_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes
        self.free_bytes = free_bytes
        self.allowed_bytes = allowed_bytes
