"""Reserved memory by replay: a job's tensors, in their order, through a model of torch's caching allocator.

A run is: the weights as they load, adapters, then optimizer steps of micro-batches. Nothing here is fitted; what it leaves out is in
`peak_reserved`. Met on published runs whose lengths are exact: nvidia-smi's peaks of Qwen-7B's LoRA runs to 0.2-2 %, and
max_memory_reserved of ms-swift's first benchmark (all samples cut to one length) to 0.2-1.4 %.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from llamamath.planner.allocator.caching import CachingAllocator
from llamamath.planner.allocator.statistics import OutOfMemory
from llamamath.planner.architecture import Architecture
from llamamath.planner.job import Job
from llamamath.planner.memory import from_job
from llamamath.planner.memory.polynomial import coefficients, evaluate
from llamamath.planner.memory.static import Static, Trainable, optimizer_memory, static_memory, weight_bytes
from llamamath.planner.memory.tape import Tape, tape_of
from llamamath.planner.parameters import weights
from llamamath.planner.stack import find_stack

STEPS = 3
"""Optimizer steps to replay where every batch has the same length: state appears in the first, so the second is the first steady one."""
MICRO_BATCHES = 2
"""Micro-batches of each: the first makes the gradients, the second finds them there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What of a run is not in its job. capacity_bytes: what the card can hand out; the allocator gives back its cache before it fails.

    orders: for batches of varying length, possible orders of their lengths; the median over them is expected, since which one a run had
    is not known. Empty: every batch has the job's length. empties_cache: the loop calls torch.cuda.empty_cache now and then, so that what
    one batch left never adds to what the longest needs.
    """

    capacity_bytes: int | None = None
    orders: tuple[tuple[int, ...], ...] = ()
    empties_cache: bool = False


def replays(job: Job) -> bool:
    """Whether reserved bytes come from a replay: runs with torch's default allocator. With expandable segments holes are counted."""
    return job.method == "sft" and not find_stack(job.stack).expandable_segments


def peak_reserved(job: Job, architecture: Architecture, workspace_bytes: int, conditions: Conditions) -> int:
    """What `max_memory_reserved` would say. workspace_bytes: cuBLAS's, all of them.

    Left out: evaluation, the data loader's tensors, kernels' own workspaces, and whatever ran in the process before. Orders in which the
    capacity does not suffice do not count, unless it suffices in none: then it is disregarded.
    """
    orders = conditions.orders or ((),)
    peaks = []
    for order in orders:
        with contextlib.suppress(OutOfMemory):
            peaks.append(_replay(job, architecture, workspace_bytes, order, conditions))
    if not peaks:
        unlimited = replace(conditions, capacity_bytes=None)
        peaks = [_replay(job, architecture, workspace_bytes, order, unlimited) for order in orders]
    return round(median(peaks))


def _replay(job: Job, architecture: Architecture, workspace_bytes: int, lengths: Sequence[int], conditions: Conditions) -> int:
    run = _Run(CachingAllocator(capacity_bytes=conditions.capacity_bytes))
    settings = from_job.settings_of(job, architecture)
    static = static_memory(architecture, settings, job.lora)
    run.load(_loading(architecture, job, static))
    run.keep(workspace_bytes // 2)
    run.keep(workspace_bytes // 2)
    accumulated = min(job.gradient_accumulation_steps, MICRO_BATCHES)
    first = tape_of(architecture, from_job.settings_of(job.changed(gradient_accumulation_steps=1), architecture))
    later = tape_of(architecture, settings) if accumulated > 1 else first
    lengths = _records(lengths) or [job.sequence_length] * (STEPS * accumulated)
    lengths += [lengths[-1]] * (-len(lengths) % accumulated)
    for index, length in enumerate(lengths):
        values = from_job.training_values(job.changed(max_length=length), architecture)
        position = index % accumulated
        run.micro_batch(later if position else first, values, keeps_gradients=position == 0)
        if position == accumulated - 1:
            run.optimizer_step(job, static)
            if conditions.empties_cache:
                run.allocator.empty_cache()
    return run.allocator.peak_reserved_bytes


def _records(lengths: Sequence[int]) -> list[int]:
    """The lengths above all before them. Only such a batch can need more than is cached: a shorter one fits into the blocks of the last.

    Compared with whole orders of 512 batches: the same growth, in a hundredth of the time.
    """
    found: list[int] = []
    for length in lengths:
        if not found or length > found[-1]:
            found.append(length)
    return found


def _loading(architecture: Architecture, job: Job, static: Static) -> Iterator[tuple[int, int]]:
    """(bytes that stay, bytes that pass through first) of every weight and adapter, in order."""
    settings = from_job.settings_of(job, architecture)
    for weight in weights(architecture):
        quantized = settings.quantized and weight.role == "linear"
        passing = weight.numel * settings.load_width if quantized else 0
        for _ in range(weight.copies):
            yield weight_bytes(weight, settings), passing
    if job.lora is not None:
        for tensor in static.trainable:
            for _ in range(tensor.copies):
                yield tensor.numel * tensor.width, 0


class _Run:
    """A process: its allocator, and what it holds."""

    def __init__(self, allocator: CachingAllocator) -> None:
        self.allocator = allocator
        self._next = 0
        self._gradients: list[int] = []
        self._has_state = False

    def keep(self, size_bytes: int) -> int:
        """Allocate until someone frees it; the id to do so."""
        self._next += 1
        self.allocator.malloc(self._next, size_bytes)
        return self._next

    def load(self, tensors: Iterator[tuple[int, int]]) -> None:
        """Weights: those that are quantised on the device are there unquantised for a moment."""
        for stays, passes in tensors:
            passing = self.keep(passes) if passes else 0
            self.keep(stays)
            if passing:
                self.allocator.free(passing)

    def micro_batch(self, tape: Tape, values: from_job.Values, *, keeps_gradients: bool) -> None:
        """Play one tape; what it leaves is a gradient or goes."""
        sizes = {size: evaluate(coefficients(size), values) for size in set(tape.sizes)}
        requested = [sizes[size] for size in tape.sizes]
        base, malloc, free = self._next, self.allocator.malloc, self.allocator.free
        self._next += len(requested)
        for event in tape.events:
            if event > 0:
                malloc(base + event, requested[event - 1])
            else:
                free(base - event)
        for entry in tape.left:
            if keeps_gradients and entry in tape.gradients:
                self._gradients.append(base + entry)
            else:
                free(base + entry)

    def optimizer_step(self, job: Job, static: Static) -> None:
        """State at the first step, temporaries at each, then the gradients go (`zero_grad`)."""
        if not self._has_state:
            self._has_state = True
            for tensor in static.trainable:
                for size in _state_sizes(job.optim, tensor):
                    self.keep(size)
        passing: list[int] = []
        if job.optim == "adamw_torch":
            reached = [tensor for tensor in static.trainable if tensor.reached]
            passing = [self.keep(tensor.numel * tensor.width) for tensor in reached for _ in range(tensor.copies)]
        elif step_bytes := optimizer_memory(job.optim, static).step_bytes:
            passing = [self.keep(step_bytes)]
        for entry in passing + self._gradients:
            self.allocator.free(entry)
        self._gradients = []


def _state_sizes(optim: str, tensor: Trainable) -> list[int]:
    """Tensors of optimizer state on the device for all copies of a trainable tensor: two moments, and 8-bit moments' scales."""
    if not tensor.reached:
        return []
    one = optimizer_memory(optim, Static(0, 0, (Trainable(tensor.numel, tensor.width, 1, tensor.embedding),), 0, 0, 0, 0))
    if not one.state_bytes:
        return []
    return [one.state_bytes // 2] * (2 * tensor.copies)
