"""RAM of the training process: the interpreter and its libraries, loading, and whatever was moved off the device."""

from __future__ import annotations

from llamamath.planner.architecture import Architecture
from llamamath.planner.estimate import HostMemory
from llamamath.planner.job import Job
from llamamath.planner.memory.static import OptimizerMemory, Static
from llamamath.units import GIB, MIB

LIBRARIES_BYTES = 484 * MIB
"""Resident size after importing torch, transformers, peft, trl, bitsandbytes, accelerate, datasets (measured, CPU torch 2.13)."""
CUDA_LIBRARIES_BYTES = round(1.5 * GIB)
"""CUDA's libraries and the driver's host side. Assumed, not measured here."""


def host_memory(job: Job, architecture: Architecture, static: Static, optimizer: OptimizerMemory, streamed_bytes: int) -> HostMemory:
    """Peak RAM: libraries + the largest weight on its way + offloaded checkpoints, weights and optimizer state.

    Checkpoints: one hidden state per layer, 2 bytes per element, in pinned memory. Paged optimizer state is counted in full, since the
    driver may evict all of it. Streamed weights stay in pinned memory in their quantised form.
    """
    pinned = streamed_bytes
    if "checkpoints" in job.offload and job.gradient_checkpointing:
        rows = job.per_device_train_batch_size * (2 if job.method == "dpo" else 1)
        pinned += 2 * rows * job.sequence_length * architecture.hidden_size * architecture.num_hidden_layers
    unpinned = optimizer.paged_bytes
    if "optimizer" in job.offload:
        pinned += optimizer.state_bytes
    return HostMemory(
        peak_bytes=LIBRARIES_BYTES + CUDA_LIBRARIES_BYTES + static.largest_read_bytes + unpinned + pinned, pinned_bytes=pinned
    )
