"""Whether a job stays inside a device and a budget, the same question for the search, the suggestions and the limits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamamath.planner.architecture import Architecture
from llamamath.planner.budget import Budget, Verdict, device_limit, host_limit, judge
from llamamath.planner.device import Device
from llamamath.planner.estimate import Estimate
from llamamath.planner.job import Job
from llamamath.planner.memory import device_bytes_at_most, estimate
from llamamath.planner.parameters import count_parameters, trainable_parameters

NOT_YET_RUNNABLE = ("weights", "optimizer")
"""`offload` values whose memory is estimated but which training cannot run: no library streams bitsandbytes' weights."""
KEPT_CHECKPOINTS = 2
"""Checkpoints on disk at once: the newest, and the one being written."""


def context_of(device: Device) -> int | None:
    """CUDA context to count with: as measured, none on a processor, None (the model's own interval) elsewhere."""
    return 0 if device.context_bytes is None and device.kind == "cpu" else device.context_bytes


def estimate_on(job: Job, architecture: Architecture, device: Device) -> Estimate:
    """The job's memory with this device's context."""
    return estimate(job, architecture, context_bytes=context_of(device), compute_capability=device.compute_capability)


def verdict_on(found: Estimate, device: Device, budget: Budget) -> Verdict:
    """`judge`, where a processor's RAM holds the process as well: libraries and offloaded tensors come out of the same limit."""
    if device.kind != "cpu":
        return judge(found, device, budget)
    limits = [limit for limit in (device_limit(device, budget), host_limit(device, budget)) if limit is not None]
    left = max(0, min(limits) - found.host.peak_bytes)
    return judge(found, replace(device, limit_bytes=left), replace(budget, vram_bytes=None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a job takes beyond what there is: bytes above the limit (negative: to spare), on the device at `high` and in RAM."""

    device_bytes: int
    shortfall_bytes: int
    host_shortfall_bytes: int | None
    """None where the machine's RAM is unknown or is the device itself."""

    @property
    def fits(self) -> bool:
        """Inside both limits."""
        return self.shortfall_bytes <= 0 and (self.host_shortfall_bytes or 0) <= 0

    @property
    def worst_bytes(self) -> int:
        """The larger shortfall."""
        return max(self.shortfall_bytes, self.host_shortfall_bytes or self.shortfall_bytes)


def need_of(job: Job, architecture: Architecture, device: Device, budget: Budget) -> Need:
    """The Need of a job, both sides."""
    found = estimate_on(job, architecture, device)
    verdict = verdict_on(found, device, budget)
    host = None if device.kind == "cpu" else host_limit(device, budget)
    return Need(
        device_bytes=found.peak.high_bytes,
        shortfall_bytes=found.peak.high_bytes - verdict.limit_bytes,
        host_shortfall_bytes=None if host is None else found.host.peak_bytes - host,
    )


def shortfall_bytes(job: Job, architecture: Architecture, device: Device, budget: Budget) -> int:
    """Device bytes at `high` above the limit, negative where it fits. The quick question that a search asks many times."""
    if device.kind == "cpu":
        return need_of(job, architecture, device, budget).shortfall_bytes
    return device_bytes_at_most(
        job, architecture, context_bytes=context_of(device), compute_capability=device.compute_capability
    ) - device_limit(device, budget)


def disk_bytes(job: Job, architecture: Architecture) -> int:
    """Disk for a run: the model's published weights in 2 bytes each, and KEPT_CHECKPOINTS of what is trained with two states, in 4 each.

    An upper bound where the model is on this machine already. Left out: data, logs, a merged model.
    """
    return 2 * count_parameters(architecture) + KEPT_CHECKPOINTS * 12 * trainable_parameters(architecture, job.lora)


def not_runnable(job: Job) -> tuple[str, ...]:
    """What of the job training cannot do yet, each as `field: value`."""
    found = [f"offload: {value}" for value in job.offload if value in NOT_YET_RUNNABLE]
    return tuple(found + (["fused_kernels: true"] if job.fused_kernels is True else []))
