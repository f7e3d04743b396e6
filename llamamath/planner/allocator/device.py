"""The memory behind the allocator: how much the driver can still hand out, and addresses.

Stands for `cudaMalloc`, `cudaFree`, `cuMemCreate`, `cuMemRelease` and `cuMemAddressReserve`.
"""

from __future__ import annotations

UNLIMITED_BYTES = 2**42
"""The size taken for a device without a capacity, to reserve addresses: 4 TiB, more than any."""

SEGMENT_BASE = 0x1000_0000_0000
EXPANDABLE_BASE = 0x4000_0000_0000
"""First addresses of the two kinds of segments. Arbitrary, below 2**47, and apart: reading a snapshot, one sees which is which."""


class Device:
    """Counts what the allocator holds of the device (`reserved_bytes`) and refuses what it has not."""

    __slots__ = (
        "_next_address",
        "_next_range",
        "_ranges",
        "capacity_bytes",
        "num_device_alloc",
        "num_device_free",
        "peak_reserved_bytes",
        "reserved_bytes",
        "total_bytes",
    )

    def __init__(self, *, capacity_bytes: int | None, total_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.total_bytes = total_bytes or capacity_bytes or UNLIMITED_BYTES
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0
        self.num_device_alloc = 0
        self.num_device_free = 0
        self._next_address = SEGMENT_BASE
        self._next_range = EXPANDABLE_BASE
        self._ranges: dict[int, list[int]] = {}

    @property
    def free_bytes(self) -> int | None:
        """What is left; None without a limit."""
        return None if self.capacity_bytes is None else self.capacity_bytes - self.reserved_bytes

    def take(self, size_bytes: int) -> bool:
        """Hand out memory; False when there is not that much."""
        if self.capacity_bytes is not None and self.reserved_bytes + size_bytes > self.capacity_bytes:
            return False
        self.reserved_bytes += size_bytes
        self.num_device_alloc += 1
        if self.reserved_bytes > self.peak_reserved_bytes:
            self.peak_reserved_bytes = self.reserved_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Take memory back."""
        self.reserved_bytes -= size_bytes
        self.num_device_free += 1

    def segment_address(self, size_bytes: int) -> int:
        """The address of a new segment."""
        address = self._next_address
        self._next_address += size_bytes
        return address

    def range_address(self, size_bytes: int) -> int:
        """The address of a range without memory: one that was given back, or a new one."""
        if self._ranges.get(size_bytes):
            return self._ranges[size_bytes].pop()
        address = self._next_range
        self._next_range += size_bytes
        return address

    def give_back_range(self, address: int, size_bytes: int) -> None:
        """Take a range without memory back."""
        self._ranges.setdefault(size_bytes, []).append(address)
