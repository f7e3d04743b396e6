"""The largest length, micro-batch or group that fits, by bisection: memory never falls when any of them grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from llamamath.errors import FieldError
from llamamath.planner.architecture import Architecture
from llamamath.planner.budget import Budget, device_limit
from llamamath.planner.device import Device
from llamamath.planner.estimate import Estimate
from llamamath.planner.fit.fitting import context_of, estimate_on, need_of, shortfall_bytes
from llamamath.planner.job import Job
from llamamath.planner.job_files.job_file import MAX_BATCH, parse_job
from llamamath.planner.memory import device_bytes_at_most
from llamamath.planner.stack import find_stack

DIMENSIONS = ("context", "batch", "group")
MATRIX_GRANULARITY = 256
"""Tokens between the lengths that the matrix tells apart."""
MOST_GROUP = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestResult:
    """value: tokens in all, sequences (dpo: pairs) per micro-batch, or completions per prompt; 0 when not even the smallest fits.

    job and estimate are at that value. next_value would fail by so many bytes; None where the value is `capped_by` something else.
    """

    what: str
    value: int
    job: Job | None
    estimate: Estimate | None
    next_value: int | None
    next_value_fails_by_bytes: int | None
    capped_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A dimension of a job: values `step * n` for n from `first` to `last`, and the job at each."""

    job_at: Callable[[int], Job]
    step: int
    first: int
    last: int
    cap: str
    """What stops the dimension at `last`."""


def scale_of(what: str, job: Job, architecture: Architecture, *, granularity: int = 1) -> Scale:
    """How `what` grows for this job. Raises FieldError for an unknown word, or `group` without GRPO.

    context: max_length, or for grpo max_completion_length beside the job's prompt; up to max_position_embeddings. batch: the micro-batch,
    accumulation kept; grpo in steps that keep whole groups. group: num_generations with one group per rollout, in steps of the micro-batch.
    """
    if what == "context":
        prompt = (job.max_prompt_length or 0) if job.method == "grpo" else 0
        name = "max_completion_length" if job.method == "grpo" else "max_length"
        first = prompt // granularity + 1
        last = max(first, architecture.max_position_embeddings // granularity)
        return Scale(
            job_at=lambda value: job.changed(**{name: value - prompt}),
            step=granularity,
            first=first,
            last=last,
            cap="max_position_embeddings",
        )
    if what == "batch":
        unit = 1
        if job.method == "grpo":
            steps, group = job.steps_per_generation or job.gradient_accumulation_steps, job.num_generations or 1
            unit = next(size for size in range(1, group + 1) if size * steps % group == 0)
        return Scale(
            job_at=lambda value: job.changed(per_device_train_batch_size=value),
            step=unit,
            first=1,
            last=MAX_BATCH // unit,
            cap="batch size",
        )
    if what != "group":
        raise FieldError("max", what, ", ".join(DIMENSIONS))
    if job.method != "grpo":
        raise FieldError("max", what, "context, batch with method " + job.method, hint="groups exist with method grpo")
    batch = job.per_device_train_batch_size

    def with_group(value: int) -> Job:
        return job.changed(num_generations=value, gradient_accumulation_steps=value // batch, steps_per_generation=None)

    return Scale(job_at=with_group, step=batch, first=2 if batch == 1 else 1, last=MOST_GROUP // batch, cap="group size")


def bisect(first: int, last: int, fits: Callable[[int], bool]) -> int:
    """The largest n in [first, last] that fits, where fitting never returns once lost; first - 1 if none does. Doubles, then halves."""
    if not fits(first):
        return first - 1
    low, stride = first, 1
    while low + stride <= last and fits(low + stride):
        low, stride = low + stride, stride * 2
    high = min(last, low + stride - 1)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def largest(
    what: str, job: Job, architecture: Architecture, device: Device, budget: Budget | None = None, *, granularity: int = 1
) -> LargestResult:
    """The largest `what` ("context", "batch" or "group") of this job on this device. granularity: tokens between lengths."""
    budget = budget or Budget()
    scale = scale_of(what, job, architecture, granularity=granularity)

    def fits(number: int) -> bool:
        at = scale.job_at(number * scale.step)
        return shortfall_bytes(at, architecture, device, budget) <= 0 and (
            not _uses_host(at) or need_of(at, architecture, device, budget).fits
        )

    found = bisect(scale.first, scale.last, fits)
    value = found * scale.step if found >= scale.first else 0
    best = scale.job_at(value) if value else None
    following = (found + 1) * scale.step
    capped = found == scale.last
    return LargestResult(
        what=what,
        value=value,
        job=best,
        estimate=None if best is None else estimate_on(best, architecture, device),
        next_value=None if capped else following,
        next_value_fails_by_bytes=None if capped else need_of(scale.job_at(following), architecture, device, budget).worst_bytes,
        capped_by=scale.cap if capped else None,
    )


def _uses_host(job: Job) -> bool:
    return bool(job.offload) or job.optim.startswith("paged")


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixCell:
    """One model on one device. fits: the template itself; context in tokens, group in completions (None unless grpo); 0: nothing fits."""

    device: str
    fits: bool
    shortfall_bytes: int
    largest_context: int
    context_is_capped: bool
    largest_group: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixRow:
    """One model on every device, in the order given. job: the template for this model."""

    model: str
    job: Job
    cells: tuple[MatrixCell, ...]


def matrix(
    models: Sequence[tuple[str, Architecture]], devices: Sequence[Device], template: Job, budget: Budget | None = None
) -> tuple[MatrixRow, ...]:
    """Every model on every device: whether `template` fits, and the largest length and group that do, all else as in the template.

    Lengths are multiples of MATRIX_GRANULARITY. Cards without bfloat16 are judged in float16 with float32 adapters. RAM is not judged.
    """
    return tuple(_row(name, architecture, devices, template.changed(model=name), budget or Budget()) for name, architecture in models)


def _row(name: str, architecture: Architecture, devices: Sequence[Device], template: Job, budget: Budget) -> MatrixRow:
    curves: dict[tuple[str, bool, int | None], dict[int, int]] = {}
    cells = []
    for device in devices:
        job = for_device(template, device)
        limit_short = shortfall_bytes(job, architecture, device, budget)

        def measure(what: str, job: Job = job, device: Device = device) -> tuple[int, bool]:
            scale = scale_of(what, job, architecture, granularity=MATRIX_GRANULARITY)
            known = curves.setdefault((what, device.supports_bf16, context_of(device)), {})
            found = bisect(scale.first, scale.last, lambda number: _at(known, number, scale, architecture, device, budget) <= 0)
            return (found * scale.step if found >= scale.first else 0), found == scale.last

        context, capped = measure("context")
        group = measure("group")[0] if job.method == "grpo" else None
        cells.append(
            MatrixCell(
                device=device.name,
                fits=limit_short <= 0,
                shortfall_bytes=limit_short,
                largest_context=context,
                context_is_capped=capped,
                largest_group=group,
            )
        )
    return MatrixRow(model=name, job=template, cells=tuple(cells))


def _at(known: dict[int, int], number: int, scale: Scale, architecture: Architecture, device: Device, budget: Budget) -> int:
    """Shortfall at one value; bytes on the device are remembered, since they are the same on every card of a kind."""
    if device.kind == "cpu":
        return shortfall_bytes(scale.job_at(number * scale.step), architecture, device, budget)
    if number not in known:
        known[number] = device_bytes_at_most(
            scale.job_at(number * scale.step), architecture, context_bytes=context_of(device), compute_capability=device.compute_capability
        )
    return known[number] - device_limit(device, budget)


def for_device(job: Job, device: Device) -> Job:
    """`job` as a card without bfloat16 would run it: float16 with float32 adapters; unchanged elsewhere."""
    if device.supports_bf16 or job.dtype != "bfloat16":
        return job
    lora = job.lora
    return job.changed(dtype="float16", lora=None if lora is None else replace(lora, dtype="float32"))


def template_job(method: str = "grpo", fixed: Mapping[str, object] | None = None) -> Job:
    """The job of the matrix: nf4-dq, LoRA 16, checkpointing, micro-batch 1; grpo with groups of 8, 512 + 1024 tokens; sft, dpo 1024.

    fixed: job-file keys that replace these. Raises what `parse_job` raises.
    """
    values: dict[str, object] = {"model": "template", "method": method, "quantization": "nf4-dq"}
    if method == "grpo":
        values |= {"max_prompt_length": 512, "max_completion_length": 1024, "num_generations": 8, "gradient_accumulation_steps": 8}
    else:
        values |= {"max_length": 1024, "gradient_accumulation_steps": 16}
    values["lora"] = {"dtype": find_stack("trl-1.16").adapter_dtype("nf4-dq")}
    return parse_job(values | dict(fixed or {}), source="matrix")
