"""The search: takes what somebody fixed, chooses the rest, and says why.

Within one model (`search_model.py`): all frames x micro-batches x rollouts that keep the effective batch exactly; of those that fit at
`high`, the fastest. Only if nothing fits do rank, lengths and group give way, in that order and never if they were fixed. With
objective `context` the longest length that fits comes first, then the fastest job at it. Over models (`auto`): in the order of
`model_choice.py`, the first that fits without lowering any quality; if none does, the first that fits with one lowered, and so on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

from llamamath.errors import FieldError
from llamamath.planner.architecture import Architecture
from llamamath.planner.budget import Budget, device_limit
from llamamath.planner.device import Device
from llamamath.planner.job import DTYPES, JOB_FIELDS, Job
from llamamath.planner.job_files.job_text import job_to_dict
from llamamath.planner.memory.settings import WIDTHS
from llamamath.planner.search.explain import binding_of, neighbours, rejections
from llamamath.planner.search.lengths import length_field
from llamamath.planner.search.model import ModelSearch, Searcher
from llamamath.planner.search.model_choice import least_weight_bytes, ranked_models
from llamamath.planner.search.request import Request, Start, flattened, start
from llamamath.planner.search.result import COST, DEVICE_MEMORY, HOURS, Candidate, Neighbour, Rejection, SearchResult
from llamamath.planner.search.space import Concession, concessions, with_first_rank
from llamamath.planner.throughput.roofline import rates_of
from llamamath.profiles.models import ModelProfile
from llamamath.units import format_bytes

__all__ = ["Candidate", "Neighbour", "Rejection", "Request", "SearchResult", "search"]

_SELDOM = JOB_FIELDS[JOB_FIELDS.index("rollout") + 1 :]
"""Fields that a job file leaves out where they are the default."""
MILD = 3
"""Concessions that `auto` makes for hours and dollars before it turns to a lesser model: three quarters of the length, half the group."""
Resolver = Callable[[str], Architecture]
_STAND_IN_NOTE = "this device's rates are unknown: jobs are ranked as an RTX 3090 would, and no time is given"


def search(request: Request, device: Device, budget: Budget, resolve: Resolver) -> SearchResult:
    """The best job for `request` on `device` within `budget`. resolve: a model's name to its Architecture.

    Deterministic: the same question gets the same answer. Raises FieldError for fixed values that contradict each other, the model or
    the device; whatever `resolve` raises.
    """
    began = time.perf_counter()
    searcher = Searcher(request, device, budget)
    if request.model is None:
        found, rejected = _over_models(searcher, resolve)
    else:
        architecture = resolve(request.model)
        found, rejected = searcher.search(architecture, start(request, architecture, device)), ()
    notes = _notes(searcher, found)
    chosen = found.chosen
    missed = found.nearest if chosen is None and found.too_much is None else None
    nearest = found.too_much if missed is None else searcher.candidate(missed.job, found.architecture)
    result = SearchResult(
        chosen=chosen,
        neighbours=neighbours(searcher, found),
        rejected=(*rejected, *rejections(searcher, found)),
        binding=binding_of(searcher, found),
        nearest=nearest,
        shortfall_bytes=0 if missed is None else missed.shortfall_bytes,
        sources={} if chosen is None else sources(request, found, chosen.job),
        ranked_by="expected time on this device"
        if rates_of(device) is not None
        else "time of an RTX 3090, this device's rates being unknown",
        notes=notes,
        evaluated=searcher.evaluated,
    )
    return replace(result, seconds=time.perf_counter() - began)


def sources(request: Request, found: ModelSearch, job: Job) -> Mapping[str, str]:
    """Field of the job (`lora.r` for nested ones) -> where its value came from: as the request says, `data`, `chosen` or `default`."""
    said: dict[str, str] = {}
    fixed = flattened(request.fixed)
    searched = {"quantization", "gradient_checkpointing", "offload", "optim", "attn_implementation", "steps_per_generation", "lora.dtype"}
    searched |= {"per_device_train_batch_size", "gradient_accumulation_steps", "dtype"}
    if request.objective == "context" and length_field(found.start):
        searched.add(length_field(found.start) or "")
    from_data = {"max_length", "max_prompt_length"} if request.token_lengths is not None else set()
    defaults = {field.name: field.default for field in fields(Job)}
    for name, value in flattened(job_to_dict(job)).items():
        section = name.partition(".")[0]
        if name not in fixed and (value is None or (name in _SELDOM and value == defaults[name])):
            continue
        if name in fixed or section in fixed:
            said[name] = request.sources.get(name, request.sources.get(section, "given"))
        elif name in searched or getattr(job, name, None) != getattr(found.start.job, name, None):
            said[name] = "chosen"
        else:
            said[name] = "data" if name in from_data else "default"
    said["method"] = request.sources.get("method", "given")
    said["model"] = "chosen" if request.model is None else request.sources.get("model", "given")
    if request.effective_batch_size is not None and not {"per_device_train_batch_size", "gradient_accumulation_steps"} & set(fixed):
        said["gradient_accumulation_steps"] = f"chosen, effective batch {request.effective_batch_size} kept"
    return said


def _notes(searcher: Searcher, found: ModelSearch) -> tuple[str, ...]:
    notes = []
    if rates_of(searcher.device) is None:
        notes.append(_STAND_IN_NOTE)
    budget, chosen = searcher.budget, found.chosen
    if chosen is not None and budget.hours is not None and chosen.cost is None:
        notes.append("the budget of hours could not be checked: the time or the number of samples is unknown")
    if chosen is not None and budget.cost_usd is not None and (chosen.cost is None or chosen.cost.high_usd is None):
        notes.append("the budget of dollars could not be checked: the time, the number of samples or the price is unknown")
    if chosen is None and found.stop is not None:
        notes.append(found.stop.reason)
    return tuple(notes)


# -- auto


@dataclass(frozen=True, slots=True)
class _Contender:
    """A model that may fit, and its concessions: itself first."""

    what: str
    architecture: Architecture
    start: Start
    concessions: tuple[Concession, ...]


def _over_models(searcher: Searcher, resolve: Resolver) -> tuple[ModelSearch, tuple[Rejection, ...]]:
    """The first model in rank order that fits as it is; else the first that fits after one concession, after two, and so on.

    Memory is saved by a lesser model before anything is lowered; time by MILD concessions before a lesser model, since halving the group
    halves the time and the model decides more of the result.
    """
    profiles = ranked_models(searcher.request.objective, images=bool(searcher.request.fixed.get("num_images")))
    rejected: dict[str, Rejection] = {}
    closest: ModelSearch | None = None
    contenders: list[_Contender] | None = None
    level = 0
    while contenders is None or any(level < len(contender.concessions) for contender in contenders):
        entered: list[_Contender] = []
        for contender in _contenders(searcher, resolve, profiles, rejected) if contenders is None else contenders:
            if level >= len(contender.concessions):
                continue
            entered.append(contender)
            found = _with(searcher, contender, contender.concessions[level])
            if level == 0 and found.binding in (HOURS, COST):
                found = _in_less_time(searcher, contender, found)
            if found.chosen is not None:
                rejected.pop(contender.what, None)
                return found, tuple(rejected.values())
            short = None if found.nearest is None or found.binding != DEVICE_MEMORY else found.nearest.shortfall_bytes
            reason = "" if found.stop is None else found.stop.reason
            rejected.setdefault(contender.what, Rejection(what=contender.what, reason=reason, shortfall_bytes=short))
            if closest is None or _excess(found) < _excess(closest):
                closest = found
        contenders, level = entered, level + 1
    return closest or _smallest(searcher, resolve, profiles), tuple(rejected.values())


def _in_less_time(searcher: Searcher, contender: _Contender, found: ModelSearch) -> ModelSearch:
    """The first MILD concessions one after the other; the last outcome if none helps."""
    for level in range(1, min(MILD + 1, len(contender.concessions))):
        concession = with_first_rank(contender.concessions[level], contender.start)
        if concession.job != contender.start.job:
            found = _with(searcher, contender, concession)
            if found.chosen is not None:
                break
    return found


def _with(searcher: Searcher, contender: _Contender, concession: Concession) -> ModelSearch:
    """The search of one model at one concession, cut short where a few questions show that nothing can fit."""
    if searcher.request.objective != "context":
        hopeless = searcher.out_of_question(contender.architecture, contender.start, concession.job)
        if hopeless is not None:
            return hopeless
    return searcher.at(contender.architecture, contender.start, concession)


def _contenders(
    searcher: Searcher, resolve: Resolver, profiles: tuple[ModelProfile, ...], rejected: dict[str, Rejection]
) -> Iterator[_Contender]:
    """The models that may fit, one by one as they are asked for; the others go into `rejected`."""
    for profile in profiles:
        what = f"model: {profile.id}"
        refused = _too_large(searcher, profile)
        if refused is None:
            architecture = resolve(profile.id)
            try:
                first = start(replace(searcher.request, model=profile.id), architecture, searcher.device)
            except FieldError as problem:
                refused = Rejection(what=what, reason=problem.message)
            else:
                yield _Contender(what, architecture, first, tuple(concessions(first, searcher.request)))
                continue
        rejected[what] = refused


def _excess(found: ModelSearch) -> float:
    return 0.0 if found.stop is None else found.stop.excess


def _too_large(searcher: Searcher, profile: ModelProfile) -> Rejection | None:
    """A model whose weights alone are above the limit, found without reading its configuration."""
    fixed = searcher.request.fixed
    quantization = "none" if "lora" in fixed and fixed["lora"] is None else fixed.get("quantization")
    width = WIDTHS.get(str(fixed.get("dtype", DTYPES[0])), 2)
    least_bytes = least_weight_bytes(profile, quantization if isinstance(quantization, str) else None, width)
    limit = device_limit(searcher.device, searcher.budget)
    if least_bytes <= limit:
        return None
    reason = f"the weights alone take {format_bytes(least_bytes)}, {format_bytes(least_bytes - limit)} too much"
    return Rejection(what=f"model: {profile.id}", reason=reason, shortfall_bytes=least_bytes - limit)


def _smallest(searcher: Searcher, resolve: Resolver, profiles: tuple[ModelProfile, ...]) -> ModelSearch:
    """Every model was refused before it was tried: the search of the smallest, for its shortfall or its error."""
    profile = min(profiles, key=lambda item: item.parameters)
    architecture = resolve(profile.id)
    return searcher.search(architecture, start(replace(searcher.request, model=profile.id), architecture, searcher.device))
