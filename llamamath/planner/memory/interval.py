"""What torch's allocator and the driver add to allocated bytes, and the interval of the estimate with its reasons.

Reserved memory exceeds allocated memory when a freed hole is smaller than the next tensor, so the largest tensor of the step is the unit
in which it is counted. With `expandable_segments` (how llamamath launches training) replays of 120 traced steps reserved between 0.1 and
1.8 such tensors above the peak: one is expected, two are the bound. With the default allocator nvidia-smi's peaks of 43 published runs
lie 0.1 to 4 of them above (one at 5.9): two are expected, four are the bound. docs/memory-model.md says more.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamamath.planner.architecture import Architecture
from llamamath.planner.job import STACKS, Job
from llamamath.planner.memory.from_job import attention_kernel, is_masked
from llamamath.planner.stack import find_stack
from llamamath.units import GIB, format_bytes

CONTEXT_LOW_BYTES = round(0.2 * GIB)
CONTEXT_BYTES = round(0.6 * GIB)
CONTEXT_HIGH_BYTES = round(1.0 * GIB)
"""CUDA context and driver where it was not measured: 226 to 501 MiB in careful measurements, 0.07 to 0.95 GiB out of error messages."""
VERIFIED_ERROR = 0.01
"""Largest difference seen between these formulas and the trace of the real step, on the paths in docs/accuracy.md."""
UNVERIFIED_ERROR = 0.05
PAGE = 20 * 2**20
"""Granularity in which the allocator takes large tensors' memory from the driver (2 MiB for small ones)."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Reserved and device bytes with bounds for the device."""

    reserved_bytes: int
    device_bytes: int
    low_bytes: int
    high_bytes: int


def interval(
    job: Job, architecture: Architecture, allocated: int, hole: int, context_bytes: int | None, reserved_bytes: int | None = None
) -> Interval:
    """Bounds around an allocated peak. hole: the largest single tensor. context_bytes: the driver's share if it was measured here.

    reserved_bytes: from a replay of the allocator; None: by counting holes.
    """
    expected_holes, most_holes = _holes(job)
    reserved = -(-(allocated + expected_holes * hole) // PAGE) * PAGE if reserved_bytes is None else reserved_bytes
    context = CONTEXT_BYTES if context_bytes is None else context_bytes
    low_context, high_context = (CONTEXT_LOW_BYTES, CONTEXT_HIGH_BYTES) if context_bytes is None else (context_bytes, context_bytes)
    error = formula_error(job)
    low = round(allocated * (1 - error)) + low_context
    high = round(allocated * (1 + error)) + most_holes * hole + _attention_workspace(job, architecture) + high_context + PAGE
    return Interval(reserved, reserved + context, low, max(high, reserved + context))


def reasons(job: Job, architecture: Architecture, hole: int, context_bytes: int | None) -> tuple[str, ...]:
    """Why the interval is as wide as it is, for people."""
    error = formula_error(job)
    found = [
        f"allocator: between 0 and {_holes(job)[1]} holes the size of the largest tensor ({format_bytes(hole)}) may stay unused",
        f"formula: within {error:.0%} of a trace of the real step" + (", this path is not verified" if error == UNVERIFIED_ERROR else ""),
    ]
    if context_bytes is None:
        low, high = format_bytes(CONTEXT_LOW_BYTES), format_bytes(CONTEXT_HIGH_BYTES)
        found.append(f"CUDA context: not measured on this machine, {low} to {high}")
    workspace = _attention_workspace(job, architecture)
    if workspace:
        found.append(f"attention: the memory-efficient kernel may take a workspace of {format_bytes(workspace)} in its backward")
    return tuple(found)


def _holes(job: Job) -> tuple[int, int]:
    """Holes the size of the largest tensor that the allocator is expected to leave unused, and at most: (expected, most).

    Only runs that llamamath launches are known to use `expandable_segments`; most other stacks describe runs with torch's default.
    """
    return (1, 2) if find_stack(job.stack).expandable_segments else (2, 4)


def formula_error(job: Job) -> float:
    """How far the allocated bytes may be from the real step's, as a share."""
    return UNVERIFIED_ERROR if _unverified(job) else VERIFIED_ERROR


def _unverified(job: Job) -> bool:
    """Paths that no trace or published run has confirmed: DoRA, Liger's chunks, offload, images; other people's training code."""
    other_code = job.stack not in STACKS
    return other_code or bool(job.offload) or job.num_images > 0 or job.loss == "liger" or bool(job.lora and job.lora.use_dora)


def _attention_workspace(job: Job, architecture: Architecture) -> int:
    """fp32 accumulator of dq in the memory-efficient backward: 4 bytes per query element (torch `mem_eff_attention`, kNeedsAccumGradQ)."""
    if attention_kernel(job, architecture, is_masked(job, architecture)) != "efficient":
        return 0
    rows = job.per_device_train_batch_size * (2 if job.method == "dpo" else 1)
    return 4 * rows * job.sequence_length * architecture.query_size
