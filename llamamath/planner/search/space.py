"""The jobs that a search looks at: frames (structure), then micro-batches and rollouts, then concessions when nothing fits as it is.

A frame is a choice of what a symbolic walk depends on, so a new one costs milliseconds and the batches within it microseconds:
quantisation (none, nf4-dq), gradient checkpointing (off, on, on with its inputs offloaded), attention kernel. `nf4` and `int8` are left
to whoever asks for them: nf4-dq is smaller than both at the same speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llamamath.errors import FieldError
from llamamath.planner.architecture import Architecture
from llamamath.planner.device import Device
from llamamath.planner.job import Job
from llamamath.planner.job_files.job_file import check_job
from llamamath.planner.search.request import Request, Start, attentions, with_quantization, with_rank
from llamamath.planner.throughput.token_lengths import GRANULARITY

QUANTIZATIONS = ("none", "nf4-dq")
OPTIMIZERS = ("adamw_torch_fused", "paged_adamw_8bit")
"""In order of preference: exact moments on the card; 8-bit moments that may be paged to RAM (bitsandbytes)."""
LENGTH_SHARES = (0.75, 0.5, 0.25)
"""How much shorter the default lengths may become, one concession after the other."""
LENGTH_PERCENTILES = (95, 90, 75)
"""The same where the data's lengths are known: the share of examples that stay uncut."""
SHORTEST = 256
"""Tokens that no length is cut below: a short question or a short derivation."""
LOWER_RANK = 8
RANK_NOTE = "LoRA rank lowered"
LOWER_GROUPS = (4, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Concession:
    """A start with some free qualities lowered, and what was lowered, for people."""

    job: Job
    notes: tuple[str, ...] = ()


def divisors(number: int) -> tuple[int, ...]:
    """All divisors, rising."""
    low = [part for part in range(1, int(number**0.5) + 1) if number % part == 0]
    return tuple(sorted({*low, *(number // part for part in low)}))


def is_valid(job: Job) -> bool:
    """Whether the job keeps the rules between fields (`job_file.check_job`)."""
    try:
        check_job(job)
    except FieldError:
        return False
    return True


def frames(job: Job, start: Start, request: Request, architecture: Architecture, device: Device) -> tuple[Job, ...]:
    """Every structure worth trying for `job`, the fastest kind first."""
    found = []
    kernels = attentions(request, architecture, device) if start.is_free("attn_implementation") else (job.attn_implementation,)
    for kernel in kernels:
        for quantization in quantizations(job, start):
            for checkpointing, offload in _checkpoints(job, start, device):
                changed = job.changed(attn_implementation=kernel, gradient_checkpointing=checkpointing, offload=offload)
                found.append(with_quantization(changed, quantization, start.free, device))
    return tuple(dict.fromkeys(found))


def quantizations(job: Job, start: Start) -> tuple[str, ...]:
    """Bases to try: the fixed one, or both; without LoRA only an unquantised one can be trained."""
    if not start.is_free("quantization") or job.kbit_preparation:
        return (job.quantization,)
    return ("none",) if job.lora is None else QUANTIZATIONS


def _checkpoints(job: Job, start: Start, device: Device) -> tuple[tuple[bool, tuple[str, ...]], ...]:
    switches = (False, True) if start.is_free("gradient_checkpointing") else (job.gradient_checkpointing,)
    if not start.is_free("offload"):
        return tuple((switch, job.offload) for switch in switches)
    pairs: list[tuple[bool, tuple[str, ...]]] = [(switch, ()) for switch in switches]
    if True in switches and device.kind == "cuda":
        pairs.append((True, ("checkpoints",)))
    return tuple(pairs)


def optimizers(job: Job, start: Start, device: Device) -> tuple[str, ...]:
    """Optimizers to try in order of preference; paging needs CUDA's managed memory."""
    if not start.is_free("optim"):
        return (job.optim,)
    return OPTIMIZERS if device.kind == "cuda" else OPTIMIZERS[:1]


def micro_batches(job: Job, start: Start) -> tuple[int, ...]:
    """Micro-batch sizes that divide the effective batch, rising; one where it or the accumulation is fixed."""
    if not start.is_free("per_device_train_batch_size", "gradient_accumulation_steps"):
        return (job.per_device_train_batch_size,)
    return divisors(start.effective_batch_size)


def rollouts(job: Job, start: Start, batch: int) -> Iterator[Job]:
    """`job` at one micro-batch size, with every rollout size that TRL accepts, rising: steps_per_generation divides the accumulation
    (so that no log-probabilities are computed twice) and a rollout holds whole groups. Only `generate` grows along it."""
    steps = start.effective_batch_size // batch
    sized = job.changed(per_device_train_batch_size=batch, gradient_accumulation_steps=steps)
    if job.method != "grpo" or not start.is_free("steps_per_generation"):
        if is_valid(sized):
            yield sized
        return
    for part in divisors(steps):
        candidate = sized.changed(steps_per_generation=None if part == steps else part)
        if is_valid(candidate):
            yield candidate


def least(frame: Job, start: Start, device: Device) -> Job | None:
    """The job of a frame that needs the least: smallest micro-batch and rollout, most economical optimizer."""
    for batch in micro_batches(frame, start):
        smallest = next(rollouts(frame, start, batch), None)
        if smallest is not None:
            return smallest.changed(optim=optimizers(frame, start, device)[-1])
    return None


def concessions(start: Start, request: Request) -> Iterator[Concession]:
    """The start itself, then with free qualities lowered one after the other: rank, lengths and group in turn. Each keeps the earlier ones.

    Lengths are left alone when the objective is context, which chooses them.
    """
    current = Concession(job=start.job)
    yield current
    changes: list[tuple[str, Callable[[Job], Job]]] = []
    if start.job.lora is not None and start.is_free("lora.r") and start.job.lora.r > LOWER_RANK:
        changes.append((f"{RANK_NOTE} to {LOWER_RANK}", lambda job: with_rank(job, LOWER_RANK, start.free)))
    groups = iter(_lower_groups(start))
    for index, share in enumerate(LENGTH_SHARES):
        if request.objective != "context":
            changes.append((f"lengths shortened to {share:.0%}", _shortened(start, request, index)))
        group = next(groups, None)
        if group is not None:
            changes.append((f"groups of {group}", _with_group(group)))
    for note, change in changes:
        lowered = change(current.job)
        if lowered != current.job and is_valid(lowered):
            if note.startswith("lengths"):
                note = f"lengths shortened to {lowered.sequence_length:,} tokens"
            kept = tuple(old for old in current.notes if old.split()[0] != note.split()[0])
            current = Concession(job=lowered, notes=(*kept, note))
            yield current


def with_first_rank(concession: Concession, start: Start) -> Concession:
    """The concession with the rank it began with."""
    first = start.job.lora
    if first is None:
        return concession
    notes = tuple(note for note in concession.notes if not note.startswith(RANK_NOTE))
    return Concession(job=with_rank(concession.job, first.r, start.free), notes=notes)


def _with_group(group: int) -> Callable[[Job], Job]:
    return lambda job: job.changed(num_generations=group)


def _lower_groups(start: Start) -> tuple[int, ...]:
    if start.job.method != "grpo" or not start.is_free("num_generations"):
        return ()
    size = start.job.num_generations or 0
    return tuple(group for group in LOWER_GROUPS if group < size and start.effective_batch_size % group == 0)


def _shortened(start: Start, request: Request, index: int) -> Callable[[Job], Job]:
    """The free lengths of the start cut to LENGTH_SHARES[index], or to what holds LENGTH_PERCENTILES[index] of the data."""
    share, measured = LENGTH_SHARES[index], request.token_lengths

    def shorter(name: str, length: int | None, *, from_data: bool) -> dict[str, int]:
        if length is None or not start.is_free(name):
            return {}
        if measured is not None and from_data:
            return {name: min(length, max(SHORTEST, measured.holding(LENGTH_PERCENTILES[index])))}
        return {name: min(length, max(SHORTEST, round(length * share) // GRANULARITY * GRANULARITY))}

    def change(job: Job) -> Job:
        first = start.job
        lengths = shorter("max_length", first.max_length, from_data=True)
        lengths |= shorter("max_prompt_length", first.max_prompt_length, from_data=True)
        lengths |= shorter("max_completion_length", first.max_completion_length, from_data=False)
        return job.changed(**lengths)

    return change
