"""The memory model: bytes per component per phase, derived from what the training code allocates.

settings.py    what of a job decides which tensors exist        from_job.py   a Job's settings, and its batch and lengths as numbers
polynomial.py  sizes as linear forms                            ledger.py     what is alive, and the worst instants
autograd.py    symbolic autograd                                ops.py        norms, rotary, element-wise operations
projections.py linears, 4- and 8-bit bases, LoRA, DoRA          attention.py  attention kernels
layers.py      decoder layers of every family                   vision.py     Mllama's image tower
heads.py       losses                                           walk.py       one step, one scoring pass, one generation
other_layers.py, other_heads.py: the same of other training code, for describing published runs
static.py      weights, adapters, optimizer state               estimating.py phases of a job on the device
tape.py        a micro-batch's allocations in order             reserving.py  replayed through the allocator
interval.py    allocator, driver, bounds                        host.py       RAM
"""

from __future__ import annotations

from llamamath.planner.architecture import Architecture
from llamamath.planner.estimate import Estimate, Peak
from llamamath.planner.job import Job
from llamamath.planner.memory.estimating import Capability, allocated_peak, device_memory, workspace_bytes
from llamamath.planner.memory.host import host_memory
from llamamath.planner.memory.interval import interval, reasons
from llamamath.planner.memory.reserving import Conditions, peak_reserved, replays
from llamamath.planner.parameters import count_parameters

__all__ = ["Conditions", "device_bytes_at_most", "estimate"]


def estimate(
    job: Job,
    architecture: Architecture,
    *,
    context_bytes: int | None = None,
    compute_capability: Capability | None = None,
    conditions: Conditions | None = None,
) -> Estimate:
    """The memory of `job` on `architecture`, every phase, device and host, with an interval and its reasons.

    context_bytes: the CUDA context as measured on this machine; None where it was not. compute_capability: of the card, for the size of
    cuBLAS's workspaces. conditions: of a particular run; with them the reserved bytes of torch's default allocator come from a replay
    (0.1 to 0.4 s), without them, or with expandable segments, from counting holes. Raises FieldError for LoRA targets that name no module
    of the model.
    """
    memory = device_memory(job, architecture, compute_capability)
    peak = memory.peak
    reserved = None
    if conditions is not None and replays(job):
        reserved = peak_reserved(job, architecture, workspace_bytes(compute_capability), conditions)
    bounds = interval(job, architecture, peak.total_bytes, memory.largest_tensor_bytes, context_bytes, reserved)
    return Estimate(
        phases=memory.phases,
        peak=Peak(
            phase=peak.name,
            allocated_bytes=peak.total_bytes,
            reserved_bytes=bounds.reserved_bytes,
            device_bytes=bounds.device_bytes,
            low_bytes=bounds.low_bytes,
            high_bytes=bounds.high_bytes,
        ),
        host=host_memory(job, architecture, memory.static, memory.optimizer, memory.streamed_bytes),
        trainable_parameters=memory.static.trainable_numel,
        total_parameters=count_parameters(architecture),
        reasons=reasons(job, architecture, memory.largest_tensor_bytes, context_bytes),
        notes=memory.notes,
    )


def device_bytes_at_most(
    job: Job, architecture: Architecture, *, context_bytes: int | None = None, compute_capability: Capability | None = None
) -> int:
    """`high_bytes` of the job's device memory alone: what a search compares with the limit, without building an Estimate."""
    allocated, largest = allocated_peak(job, architecture, compute_capability)
    return interval(job, architecture, allocated, largest, context_bytes).high_bytes
