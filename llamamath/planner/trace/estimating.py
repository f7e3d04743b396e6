"""From a traced run to an Estimate with basis `trace`, and `verify`, which does both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llamamath.planner.architecture import Architecture
from llamamath.planner.device import Device
from llamamath.planner.estimate import PHASES, Estimate, Peak, PhaseMemory
from llamamath.planner.job import Job
from llamamath.planner.memory import estimate as formula
from llamamath.planner.memory.from_job import attention_kernel, is_masked
from llamamath.planner.memory.interval import CONTEXT_BYTES, CONTEXT_HIGH_BYTES, CONTEXT_LOW_BYTES
from llamamath.planner.trace.accounting import Instant
from llamamath.planner.trace.client import trace
from llamamath.planner.trace.replaying import replayed
from llamamath.planner.trace.result import TraceResult
from llamamath.units import format_bytes

MEASURED_ERROR = 0.001
"""Largest difference seen between traces and published A100 peaks or real CPU steps (docs/accuracy.md, tests/trace)."""


def verify(
    job: Job,
    architecture: Architecture,
    device: Device,
    *,
    cache_dir: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Estimate:
    """The estimate of `job` from a trace of its real step. Raises as `client.trace` does."""
    result = trace(job, architecture, capability=device.compute_capability, cache_dir=cache_dir, progress=progress)
    return to_estimate(result, job, architecture, device)


def to_estimate(result: TraceResult, job: Job, architecture: Architecture, device: Device) -> Estimate:
    """The traced run as an Estimate: components at each phase's worst instant, reserved bytes from a replay of all its events.

    device bytes = reserved + context. low = allocated (less MEASURED_ERROR) + context; high = reserved + the largest tensor (a batch of
    another shape before this one leaves holes) + attention workspace + context. The replay is repeated with the card's capacity where the
    free one would not fit, as the allocator then gives back what it has cached and tries again.
    """
    expandable = job.stack == "trl-1.16"  # how llamamath launches training; the other stacks describe runs with torch's default
    phases = tuple(_phase(instant, result.unseen_allocated_bytes) for instant in result.instants if instant.phase in PHASES)
    peak = max(phases, key=lambda phase: phase.total_bytes)
    low_context, context, high_context = _context(device)
    reserved = replayed(result, expandable=expandable).peak_reserved_bytes
    notes = list(result.notes)
    room = device.limit_bytes - context
    if reserved > room > 0:
        limited = replayed(result, expandable=expandable, capacity_bytes=room)
        if limited.fits:
            notes.append(f"the allocator would keep {format_bytes(reserved)} if it could; it fits by giving cached blocks back")
            reserved = limited.peak_reserved_bytes
    workspace = attention_workspace(job, architecture)
    largest = largest_tensor(result)
    by_formula = formula(job, architecture, context_bytes=device.context_bytes)
    return Estimate(
        phases=phases,
        peak=Peak(
            phase=peak.name,
            allocated_bytes=peak.total_bytes,
            reserved_bytes=reserved,
            device_bytes=reserved + context,
            low_bytes=round(peak.total_bytes * (1 - MEASURED_ERROR)) + low_context,
            high_bytes=reserved + largest + workspace + high_context,
        ),
        host=by_formula.host,
        trainable_parameters=result.trainable_parameters,
        total_parameters=by_formula.total_parameters,
        basis="trace",
        reasons=_reasons(result, device, workspace, largest),
        notes=(*by_formula.notes, *notes),
    )


def _phase(instant: Instant, unseen_bytes: int) -> PhaseMemory:
    sizes = {f"{name}_bytes": size for name, size in instant.components.items()}
    sizes["temporary_bytes"] += unseen_bytes
    text = ", ".join(part for part in (instant.detail, instant.operation) if part)
    return PhaseMemory(name=instant.phase, instant=text, **sizes)


def _context(device: Device) -> tuple[int, int, int]:
    if device.kind == "cpu":
        return 0, 0, 0
    if device.context_bytes is not None:
        return device.context_bytes, device.context_bytes, device.context_bytes
    return CONTEXT_LOW_BYTES, CONTEXT_BYTES, CONTEXT_HIGH_BYTES


def attention_workspace(job: Job, architecture: Architecture) -> int:
    """float32 accumulator of dq in the memory-efficient backward: 4 bytes per query element.

    torch `mem_eff_attention/kernel_backward.h`, kNeedsAccumGradQ. Not allocated through an operation, so no trace shows it; it exists
    only for some head sizes and cards, hence in `high_bytes` alone.
    """
    if attention_kernel(job, architecture, is_masked(job, architecture)) != "efficient":
        return 0
    rows = job.per_device_train_batch_size * (2 if job.method == "dpo" else 1)
    return 4 * rows * job.sequence_length * architecture.query_size


def largest_tensor(result: TraceResult) -> int:
    """The biggest tensor allocated after loading: the size of hole the allocator may be left with."""
    stream = result.stream
    first = next((mark.position for mark in stream.marks if mark.phase == "between"), 0)
    return max((entry for entry in stream.entries[first:] if entry > 0), default=0)


def _reasons(result: TraceResult, device: Device, workspace: int, largest: int) -> tuple[str, ...]:
    found = [
        f"trace: every allocation of the real step with {', '.join(f'{name} {version}' for name, version in result.versions.items())}",
        f"allocator: replayed; a batch of another shape may leave one more hole of the largest tensor ({format_bytes(largest)})",
    ]
    found += [f"not seen by the trace: {part.name}, {format_bytes(part.bytes)} ({part.source})" for part in result.unseen]
    if workspace:
        found.append(
            f"not seen by the trace: a workspace of attention's backward of up to {format_bytes(workspace)}, in the upper bound only"
        )
    if device.context_bytes is None and device.kind != "cpu":
        low, high = format_bytes(CONTEXT_LOW_BYTES), format_bytes(CONTEXT_HIGH_BYTES)
        found.append(f"CUDA context: not measured on this machine, {low} to {high}")
    return tuple(found)
