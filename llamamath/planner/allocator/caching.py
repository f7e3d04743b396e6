"""The caching allocator: `malloc`, `free`, growth, release-and-retry, statistics.

Source: torch 2.13, `c10/cuda/CUDACachingAllocator.cpp`, class `DeviceCachingAllocator`: `malloc`, `get_free_block`, `alloc_block`,
`alloc_found_block`, `free_block`, `release_blocks`, `emptyCache`. The growth of expandable segments is in expandable.py.

The driver behind it has `capacity_bytes` and hands out ascending addresses that it never uses twice. The real one may reuse an address
after `cudaFree`; addresses only decide between free blocks of equal size. Off by default and left out: `max_split_size_mb` (hence
`release_available_cached_blocks`), garbage collection, private pools of CUDA graphs, `record_stream`, second streams.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from llamamath.errors import UsageError
from llamamath.planner.allocator.blocks import ADDRESS_BITS, ADDRESS_MASK, Block, Pool
from llamamath.planner.allocator.device import Device
from llamamath.planner.allocator.expandable import allocate_expandable, choose_expandable, unmap
from llamamath.planner.allocator.recorder import Recorder
from llamamath.planner.allocator.sizes import MAX_REQUEST_BYTES, SMALL_SIZE_BYTES, segment_size
from llamamath.planner.allocator.statistics import OutOfMemory, Statistics


class CachingAllocator:
    """PyTorch's CUDA caching allocator of one device and one stream, on numbers.

    expandable: `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`. capacity_bytes: what the driver can hand out: free memory, not the
    card's total; None for no limit. allowed_bytes: the limit of `set_per_process_memory_fraction`, None also for a fraction of 1.
    device_total_bytes: the card's memory, for the address range of an expandable segment; the capacity if not given. recorder: keeps a
    history for a snapshot.
    """

    def __init__(
        self,
        *,
        expandable: bool = False,
        capacity_bytes: int | None = None,
        allowed_bytes: int | None = None,
        device_total_bytes: int | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.expandable = expandable
        self.device = Device(capacity_bytes=capacity_bytes, total_bytes=device_total_bytes)
        self.allowed_bytes = allowed_bytes
        self.recorder = recorder
        self.allocated_bytes = 0
        self.peak_allocated_bytes = 0
        self.requested_bytes = 0
        self.num_alloc_retries = 0
        self.num_ooms = 0
        self._live: dict[int, Block | None] = {}
        self._small = Pool(small=True, expandable=expandable)
        self._large = Pool(small=False, expandable=expandable)

    @property
    def reserved_bytes(self) -> int:
        """What `torch.cuda.memory_reserved` would say."""
        return self.device.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """What `torch.cuda.max_memory_reserved` would say."""
        return self.device.peak_reserved_bytes

    def malloc(self, identity: int, requested_bytes: int, label: str = "") -> None:
        """Allocate. Raises OutOfMemory, after which the allocator goes on as PyTorch's would; UsageError for an id already alive.

        A request of 0 bytes is a tensor without memory (`NativeCachingAllocator::allocate`).
        """
        if requested_bytes <= 0 or requested_bytes >= MAX_REQUEST_BYTES or identity in self._live:
            self._unusual(identity, requested_bytes)
            return
        size = -(-requested_bytes // 512) * 512
        pool = self._small if size <= SMALL_SIZE_BYTES else self._large
        keys = pool.keys
        index = bisect_left(keys, size << ADDRESS_BITS)
        if index < len(keys):
            if self.expandable:
                index = choose_expandable(pool, index)
            block = pool.blocks.pop(keys.pop(index) & ADDRESS_MASK)
            block.free = False
        else:
            block = self._grow(pool, size, requested_bytes)
        if block.size - size >= pool.smallest_remainder:
            rest = Block(block.address + size, block.size - size, pool, block.segment)
            rest.prev = block
            rest.next = after = block.next
            if after is not None:
                after.prev = rest
            block.next = rest
            block.size = size
            rest.free = True
            pool.blocks[rest.address] = rest
            insort(keys, rest.size << ADDRESS_BITS | rest.address)
        block.requested = requested_bytes
        self._live[identity] = block
        self.requested_bytes += requested_bytes
        self.allocated_bytes = allocated = self.allocated_bytes + block.size
        if allocated > self.peak_allocated_bytes:
            self.peak_allocated_bytes = allocated
        if self.recorder is not None:
            block.label = label
            self.recorder.record("alloc", block.address, requested_bytes, label)

    def free(self, identity: int) -> None:
        """Give a block back to the cache, united with free neighbours. Raises UsageError for an id that is not alive."""
        try:
            block = self._live.pop(identity)
        except KeyError:
            raise UsageError(f"free of {identity}, which is not allocated", "the events are not one complete, ordered stream") from None
        if block is None:
            return
        self.allocated_bytes -= block.size
        self.requested_bytes -= block.requested
        if self.recorder is not None:
            self.recorder.record("free_requested", block.address, block.requested, block.label)
            self.recorder.record("free_completed", block.address, block.requested, block.label)
        pool = block.pool
        keys = pool.keys
        before = block.prev
        if before is not None and before.free:
            del pool.blocks[before.address]
            del keys[bisect_left(keys, before.size << ADDRESS_BITS | before.address)]
            block.address = before.address
            block.size += before.size
            block.prev = before = before.prev
            if before is not None:
                before.next = block
        after = block.next
        if after is not None and after.free:
            del pool.blocks[after.address]
            del keys[bisect_left(keys, after.size << ADDRESS_BITS | after.address)]
            block.size += after.size
            block.next = after = after.next
            if after is not None:
                after.prev = block
        block.free = True
        pool.blocks[block.address] = block
        insort(keys, block.size << ADDRESS_BITS | block.address)

    def empty_cache(self) -> None:
        """`torch.cuda.empty_cache`: return to the driver what can be returned (`release_cached_blocks`).

        Whole free segments; of expandable segments, whole free pages.
        """
        for pool in (self._large, self._small):
            for block in pool:
                if block.segment is not None:
                    unmap(pool, block, self.device, self.recorder)
                elif not block.is_split:
                    pool.remove(block)
                    self.device.give_back(block.size)
                    if self.recorder is not None:
                        self.recorder.record("segment_free", block.address, block.size, "")

    def reset_peak(self) -> None:
        """`torch.cuda.reset_peak_memory_stats`: peaks start again from what is held now."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.device.peak_reserved_bytes = self.device.reserved_bytes

    def statistics(self) -> Statistics:
        """The counters of `torch.cuda.memory_stats`."""
        splits = [block for pool in (self._small, self._large) for block in pool if block.segment is None and block.is_split]
        whole = sum(1 for block in self.blocks() if block.segment is None and block.prev is None)
        return Statistics(
            allocated_bytes=self.allocated_bytes,
            peak_allocated_bytes=self.peak_allocated_bytes,
            reserved_bytes=self.device.reserved_bytes,
            peak_reserved_bytes=self.device.peak_reserved_bytes,
            requested_bytes=self.requested_bytes,
            inactive_split_bytes=sum(block.size for block in splits),
            num_allocations=sum(1 for block in self._live.values() if block is not None),
            num_segments=whole,
            num_inactive_splits=len(splits),
            num_alloc_retries=self.num_alloc_retries,
            num_ooms=self.num_ooms,
            num_device_alloc=self.device.num_device_alloc,
            num_device_free=self.device.num_device_free,
        )

    def blocks(self) -> Iterator[Block]:
        """Every block with memory behind it, allocated or free, in no order."""
        yield from (block for block in self._live.values() if block is not None)
        for pool in (self._small, self._large):
            yield from pool

    def _unusual(self, identity: int, requested_bytes: int) -> None:
        """An allocation of nothing, or one that cannot be."""
        if identity in self._live:
            raise UsageError(f"allocation of {identity}, which is allocated already", "ids are reused only after their free")
        if requested_bytes < 0 or requested_bytes >= MAX_REQUEST_BYTES:
            raise UsageError(f"allocation of {requested_bytes} bytes", "a size is at least 0 and below 1 EiB")
        self._live[identity] = None

    def _grow(self, pool: Pool, size: int, requested_bytes: int) -> Block:
        """A block of at least `size` from the driver, after a release of the cache if need be. Raises OutOfMemory."""
        block = self._allocate(pool, size)
        if block is None:
            self.empty_cache()
            self.num_alloc_retries += 1
            block = self._allocate(pool, size)
        if block is None:
            self.num_ooms += 1
            if self.recorder is not None:
                self.recorder.record("oom", self.device.free_bytes or 0, size, "")
            raise OutOfMemory(
                requested_bytes=requested_bytes,
                segment_bytes=segment_size(size),
                allocated_bytes=self.allocated_bytes,
                reserved_bytes=self.device.reserved_bytes,
                free_bytes=self.device.free_bytes,
                allowed_bytes=self.allowed_bytes,
            )
        return block

    def _allocate(self, pool: Pool, size: int) -> Block | None:
        """One attempt (`alloc_block`). The fraction of the process is checked with the segment's size in both modes."""
        segment_bytes = segment_size(size)
        if self.allowed_bytes is not None and self.device.reserved_bytes + segment_bytes > self.allowed_bytes:
            return None
        if self.expandable:
            return allocate_expandable(pool, size, self.device, self.recorder)
        if not self.device.take(segment_bytes):
            return None
        block = Block(self.device.segment_address(segment_bytes), segment_bytes, pool, None)
        if self.recorder is not None:
            self.recorder.record("segment_alloc", block.address, block.size, "")
        return block
