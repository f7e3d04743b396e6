"""Why a search chose what it chose: each knob's other values with the reason, what lies beside the choice, and what stopped it."""

from __future__ import annotations

from collections.abc import Iterator

from llamamath.planner.budget import TIGHT
from llamamath.planner.fit.fitting import need_of
from llamamath.planner.job import Job
from llamamath.planner.search.model import SAME_SPEED, ModelSearch, Option, Searcher
from llamamath.planner.search.request import attentions, with_quantization, with_rank
from llamamath.planner.search.result import DEVICE_MEMORY, HOST_MEMORY, NOTHING, Candidate, Neighbour, Rejection
from llamamath.planner.search.space import OPTIMIZERS, QUANTIZATIONS, is_valid, micro_batches, rollouts
from llamamath.units import format_bytes

LESS_MEMORY = 0.85
"""A neighbour that needs less must need this share of the chosen job's memory, or it is not worth showing."""
LONGER = 1.05
FASTER = 0.98
TIGHT_LABEL = "faster, but only expected to fit"
MANY_MISSES = 12
"""Faster jobs that miss the limit, looked at for one that would fit as expected but not at its high end."""

_PREFERENCES = {
    "quantization": "unquantised weights are preferred",
    "optim": "exact moments on the card are preferred",
    "offload": "nothing is moved to RAM",
}
"""Why one of two equally fast jobs was taken: the order of `Searcher.ranked`."""


def rejections(searcher: Searcher, found: ModelSearch) -> tuple[Rejection, ...]:
    """For each knob that was free, its other values: one change at a time from the chosen job, judged by the same model."""
    chosen = found.chosen
    if chosen is None:
        return _all_missed(found)
    before = searcher.seconds(chosen.job, found.architecture)
    rejected = []
    for what, job in _alternatives(searcher, found, chosen.job):
        if isinstance(job, str):
            rejected.append(Rejection(what=what, reason=job))
            continue
        searcher.evaluated += 1
        need = need_of(job, found.architecture, searcher.device, searcher.budget)
        slower = searcher.seconds(job, found.architecture) / before - 1
        if need.shortfall_bytes > 0:
            reason, short = f"needs {format_bytes(need.shortfall_bytes)} of device memory too much", need.shortfall_bytes
        elif (need.host_shortfall_bytes or 0) > 0:
            short = need.host_shortfall_bytes or 0
            reason = f"needs {format_bytes(short)} of RAM too much"
        else:
            spare = need.device_bytes - chosen.estimate.peak.high_bytes
            memory = f"{format_bytes(abs(spare))} {'less' if spare < 0 else 'more'} memory"
            reason, short = f"fits, but {slower:.0%} slower with {memory}", None
            if slower <= SAME_SPEED:
                preference = _PREFERENCES.get(what.partition(":")[0], "what needs less is preferred")
                reason = f"fits with {memory}; as fast within {SAME_SPEED:.0%}, where {preference}"
        rejected.append(Rejection(what=what, reason=reason, shortfall_bytes=short))
    return tuple(rejected)


def _alternatives(searcher: Searcher, found: ModelSearch, job: Job) -> Iterator[tuple[str, Job | str]]:
    """(`field: value`, the chosen job with that one change, or why it cannot run)."""
    start, device = found.start, searcher.device
    if start.is_free("quantization") and job.lora is not None:
        for quantization in QUANTIZATIONS:
            if quantization != job.quantization:
                yield f"quantization: {quantization}", with_quantization(job, quantization, start.free, device)
    if start.is_free("gradient_checkpointing"):
        other = job.changed(gradient_checkpointing=not job.gradient_checkpointing, offload=())
        yield f"gradient_checkpointing: {str(other.gradient_checkpointing).lower()}", other
    if start.is_free("offload") and job.gradient_checkpointing and device.kind == "cuda":
        other = job.changed(offload=() if job.offload else ("checkpoints",))
        yield f"offload: [{', '.join(other.offload)}]", other
    if start.is_free("optim") and device.kind == "cuda":
        for optim in OPTIMIZERS:
            if optim != job.optim:
                yield f"optim: {optim}", job.changed(optim=optim)
    if start.is_free("attn_implementation") and job.attn_implementation != "flash_attention_2":
        flash = "flash_attention_2"
        refused = None if flash in attentions(searcher.request, found.architecture, device) else _why_no_flash(searcher, found)
        yield f"attn_implementation: {flash}", refused or job.changed(attn_implementation=flash)
    larger = next((size for size in micro_batches(job, start) if size > job.per_device_train_batch_size), None)
    if larger is not None:
        sized = sorted(rollouts(job, start, larger), key=lambda rolled: abs(rolled.generation_batch_size - job.generation_batch_size))
        if sized:
            yield f"per_device_train_batch_size: {larger}", sized[0]
    for rolled in rollouts(job, start, job.per_device_train_batch_size):
        if rolled.generation_batch_size > job.generation_batch_size:
            steps = rolled.steps_per_generation or rolled.gradient_accumulation_steps
            yield f"steps_per_generation: {steps}", rolled
            break


def _why_no_flash(searcher: Searcher, found: ModelSearch) -> str:
    capability = searcher.device.compute_capability
    if searcher.device.kind == "cpu" or (capability is not None and capability < (8, 0)):
        return f"{searcher.device.name} cannot run it: it needs CUDA and compute capability 8.0"
    return "transformers refuses it for mllama" if found.architecture.family == "mllama" else "the flash-attn package is not installed"


def _all_missed(found: ModelSearch) -> tuple[Rejection, ...]:
    """Nothing fits: the smallest shortfall of each value of each knob, over everything that was tried."""
    best: dict[str, int] = {}
    for miss in found.exploration.misses:
        job = miss.job
        for what in (
            f"quantization: {job.quantization}",
            f"gradient_checkpointing: {str(job.gradient_checkpointing).lower()}",
            f"offload: [{', '.join(job.offload)}]",
            f"per_device_train_batch_size: {job.per_device_train_batch_size}",
        ):
            best[what] = min(best.get(what, miss.shortfall_bytes), miss.shortfall_bytes)
    return tuple(
        Rejection(what=what, reason=f"at least {format_bytes(short)} of device memory short", shortfall_bytes=short)
        for what, short in best.items()
    )


def binding_of(searcher: Searcher, found: ModelSearch) -> str:
    """What kept a faster job from being chosen: the device's memory, RAM, or nothing."""
    chosen = found.chosen
    if chosen is None:
        return found.binding
    limit = searcher.seconds(chosen.job, found.architecture) * FASTER
    if any(searcher.seconds(_rolled_out(miss.job), found.architecture) < limit for miss in found.exploration.misses):
        return DEVICE_MEMORY
    if any(option.seconds < limit for option in found.exploration.options):
        return HOST_MEMORY  # it fits the device, so only RAM can have spoken against it
    return NOTHING


def _rolled_out(job: Job) -> Job:
    """The miss with its largest rollout, which needs no less and is the fastest of its kind: only the first that fails was looked at."""
    return job.changed(steps_per_generation=None) if job.method == "grpo" else job


def neighbours(searcher: Searcher, found: ModelSearch) -> tuple[Neighbour, ...]:
    """Jobs on the edge beside the chosen one, within the budgets; one may be faster but only expected to fit."""
    chosen = found.chosen
    if chosen is None:
        return ()
    shown: dict[Job, str] = {}
    for label, job in (
        ("longer context", _longer(searcher, found, chosen.job)),
        ("higher LoRA rank", _higher_rank(searcher, found, chosen.job)),
        ("larger micro-batch", _larger_batch(found, chosen.job)),
        ("less memory", _less_memory(searcher, found, chosen)),
        (TIGHT_LABEL, _tight(searcher, found, chosen.job)),
    ):
        if job is not None and job != chosen.job:
            shown.setdefault(job, label)
    beside = [Neighbour(label=label, candidate=searcher.candidate(job, found.architecture)) for job, label in shown.items()]
    return tuple(neighbour for neighbour in beside if neighbour.label == TIGHT_LABEL or searcher.broken(neighbour.candidate) is None)


def _longer(searcher: Searcher, found: ModelSearch, job: Job) -> Job | None:
    from llamamath.planner.fit.limits import largest

    if not found.start.is_free("max_completion_length" if job.method == "grpo" else "max_length"):
        return None
    result = largest("context", job, found.architecture, searcher.device, searcher.budget, granularity=64)
    if result.job is None or result.value < job.sequence_length * LONGER:
        return None
    return result.job


def _higher_rank(searcher: Searcher, found: ModelSearch, job: Job) -> Job | None:
    if job.lora is None or not found.start.is_free("lora.r"):
        return None
    higher = with_rank(job, 2 * job.lora.r, found.start.free)
    return higher if need_of(higher, found.architecture, searcher.device, searcher.budget).fits else None


def _larger_batch(found: ModelSearch, job: Job) -> Job | None:
    larger = [option for option in found.exploration.options if option.job.per_device_train_batch_size > job.per_device_train_batch_size]
    return min(larger, key=_by_time).job if larger else None


def _less_memory(searcher: Searcher, found: ModelSearch, chosen: Candidate) -> Job | None:
    """The fastest that needs clearly less, and less RAM too if RAM is what is short."""
    limit = -chosen.verdict.headroom_bytes - round((1 - LESS_MEMORY) * chosen.estimate.peak.high_bytes)
    smaller = [option for option in found.exploration.options if option.shortfall_bytes <= limit]
    smaller.sort(key=_by_time)
    fitting = (option.job for option in smaller if need_of(option.job, found.architecture, searcher.device, searcher.budget).fits)
    return next(fitting, None)


def _tight(searcher: Searcher, found: ModelSearch, job: Job) -> Job | None:
    limit = searcher.seconds(job, found.architecture) * FASTER
    near = sorted(found.exploration.misses, key=lambda miss: (miss.shortfall_bytes, repr(miss.job)))[:MANY_MISSES]
    tight = []
    for miss in near:
        seconds = searcher.seconds(miss.job, found.architecture)
        if seconds < limit and is_valid(miss.job) and searcher.candidate(miss.job, found.architecture).verdict.verdict == TIGHT:
            tight.append(Option(miss.job, miss.shortfall_bytes, seconds))
    return min(tight, key=_by_time).job if tight else None


def _by_time(option: Option) -> tuple[float, int]:
    return option.seconds, option.shortfall_bytes
