"""What to change about a job that does not fit: the cheapest first, each estimated again by the same model, with the bytes it saves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from llamamath.errors import FieldError
from llamamath.planner.architecture import Architecture
from llamamath.planner.budget import Budget
from llamamath.planner.device import Device
from llamamath.planner.fit.changes import ANOTHER_MODEL, EXTENT, NOT_YET, PRECISION, Change, changes, host_changes
from llamamath.planner.fit.fitting import Need, need_of, not_runnable
from llamamath.planner.fit.limits import largest
from llamamath.planner.job import Job
from llamamath.planner.search.space import is_valid

WORTHWHILE = 0.01
MOST_SMALLER_MODELS = 4
MOST_STEPS = 16
"""Changes tried one after the other for a combination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """One change, or several joined by "and". saves_bytes: less on the side that is short (the device at `high`, or RAM).

    fits: with this alone the job fits. runnable: training can do it today. cost: what is given up.
    """

    change: str
    saves_bytes: int
    job: Job
    runnable: bool
    fits: bool
    cost: str


@dataclass(frozen=True, slots=True)
class _Tried:
    """A change with what it brings."""

    change: Change
    saves_bytes: int
    fits: bool


@dataclass(frozen=True, slots=True)
class _Case:
    """The question: a device, a budget, and which side is short."""

    architecture: Architecture
    device: Device
    budget: Budget
    on_host: bool

    def need(self, job: Job, architecture: Architecture | None = None) -> Need:
        """The job's Need."""
        return need_of(job, architecture or self.architecture, self.device, self.budget)

    def bytes_of(self, need: Need) -> int:
        """The bytes of the side that is short."""
        return (need.host_shortfall_bytes or 0) if self.on_host else need.shortfall_bytes

    def tried(self, change: Change, before: Need, architecture: Architecture | None = None) -> _Tried | None:
        """The change estimated; None where it keeps no rule, names no module of the model, or saves nothing."""
        if not is_valid(change.job):
            return None
        try:
            after = self.need(change.job, architecture)
        except FieldError:
            return None
        saved = self.bytes_of(before) - self.bytes_of(after)
        return _Tried(change, saved, after.fits) if saved > 0 else None


def suggest(job: Job, architecture: Architecture, device: Device, budget: Budget | None = None, limit: int = 6) -> tuple[Suggestion, ...]:
    """Up to `limit` changes that save memory, in the order of what they give up; empty for a job that fits.

    What saves less than WORTHWHILE of what is missing is left out. Of alternatives (smaller micro-batches, say) the mildest that fits is
    offered, else the one that saves most. Where no single change suffices without touching what is trained (length, rank, group, model),
    the last suggestion is a combination that does, without anything it can do without; or, if even everything together does not, what
    saves most. What training cannot run yet comes last.
    """
    budget = budget or Budget()
    before = need_of(job, architecture, device, budget)
    if before.fits:
        return ()
    case = _Case(architecture, device, budget, on_host=before.shortfall_bytes <= 0)
    tried = _alternatives(case, job, before)
    chosen = _best(tried, limit)
    if limit > 1 and not any(item.fits and item.change.gives_up <= PRECISION for item in tried):
        combined = _combination(case, job, before)
        if combined is not None and all(item.change.job != combined.change.job for item in tried):
            chosen = [*_best(tried, limit - 1), combined]
    return tuple(
        Suggestion(
            change=item.change.change,
            saves_bytes=item.saves_bytes,
            job=item.change.job,
            runnable=_runnable(item.change.job),
            fits=item.fits,
            cost=item.change.cost,
        )
        for item in chosen
    )


def _runnable(job: Job) -> bool:
    return not not_runnable(job)


def _alternatives(case: _Case, job: Job, before: Need) -> list[_Tried]:
    """The best of each group of changes, in order."""
    found = _best_of_groups(case, job, before)
    found += filter(None, (_shorter(case, job, before), _smaller_model(case, job, before)))
    least = WORTHWHILE * case.bytes_of(before)
    found = [item for item in found if item.fits or item.saves_bytes >= least]
    needless = [item for item in found if any(_does_with_less(other, item, job) for other in found)]
    return sorted((item for item in found if item not in needless), key=lambda item: (item.change.gives_up, -item.saves_bytes))


def _does_with_less(one: _Tried, other: _Tried, job: Job) -> bool:
    """Whether `one` sets fewer fields than `other`, to the same values, and saves as much."""
    fewer, more = _delta(job, one.change.job).items(), _delta(job, other.change.job).items()
    return len(fewer) < len(more) and all(item in more for item in fewer) and one.saves_bytes >= other.saves_bytes


def _best_of_groups(case: _Case, job: Job, need: Need) -> list[_Tried]:
    """Of each group of changes the mildest that suffices, else the one that saves most."""
    groups: dict[str, list[_Tried]] = {}
    for change in (*(host_changes(job) if case.on_host else ()), *changes(job, case.architecture, case.device)):
        tried = case.tried(change, need)
        if tried is not None:
            groups.setdefault(change.group, []).append(tried)
    return [next((item for item in group if item.fits), max(group, key=lambda item: item.saves_bytes)) for group in groups.values()]


def _best(tried: list[_Tried], limit: int) -> list[_Tried]:
    """At most `limit`: those that suffice by themselves, then those that save most; in the order given."""
    kept = sorted(tried, key=lambda item: (not item.fits, item.change.gives_up == NOT_YET, -item.saves_bytes))[:limit]
    return [item for item in tried if item in kept]


def _shorter(case: _Case, job: Job, before: Need) -> _Tried | None:
    """The longest length that fits, or half of what is asked where none does."""
    prompt = (job.max_prompt_length or 0) if job.method == "grpo" else 0
    name = "max_completion_length" if job.method == "grpo" else "max_length"
    asked = job.sequence_length - prompt
    fitting = largest("context", job, case.architecture, case.device, case.budget, granularity=16).value - prompt
    length = fitting if 0 < fitting < asked else max(1, asked // 2)
    if length == asked:
        return None
    change = Change(
        change=f"{name}: {length}",
        job=job.changed(**{name: length}),
        cost="longer examples are cut" if job.method != "grpo" else "longer answers are cut off, and count as wrong",
        gives_up=EXTENT,
        group="length",
    )
    return case.tried(change, before)


def _smaller_model(case: _Case, job: Job, before: Need) -> _Tried | None:
    """The largest smaller model of the same line that fits, else the smallest of those looked at."""
    from llamamath.planner.model_files.config_file import architecture_from_config
    from llamamath.planner.search.model_choice import smaller_models

    last: _Tried | None = None
    for profile in smaller_models(job.model)[:MOST_SMALLER_MODELS]:
        change = Change(
            change=f"model: {profile.id}", job=job.changed(model=profile.id), cost="a smaller model", gives_up=ANOTHER_MODEL, group="model"
        )
        last = case.tried(change, before, architecture_from_config(profile.config, profile.id)) or last
        if last is not None and last.fits:
            break
    return last


# -- combinations

Delta = dict[str, object]
"""Fields that a change sets; LoRA's as `lora.r`."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One change of a combination: what it is called, what it costs, and the fields it sets."""

    change: Change
    delta: Delta


def _combination(case: _Case, job: Job, before: Need) -> _Tried | None:
    """Changes one after the other, the cheapest first, until the job fits; then without those that it can do without.

    With what training cannot run yet only if the rest does not suffice. None if less than two changes help.
    """
    runnable: list[_Step] = []
    for not_yet in (False, True):
        steps = _until_it_fits(case, job, before, not_yet=not_yet)
        runnable = runnable or steps
        if len(steps) > 1 and case.need(_apply(job, steps)).fits:
            return _join(case, job, before, _needed(case, job, steps))
    return _join(case, job, before, runnable) if len(runnable) > 1 else None


def _until_it_fits(case: _Case, job: Job, before: Need, *, not_yet: bool) -> list[_Step]:
    """The cheapest helpful change again and again. A group may come up twice, when another phase has become the worst in between."""
    current, need, steps = job, before, list[_Step]()
    for _ in range(MOST_STEPS):
        if need.fits:
            break
        helpful = (step for step in _helpful(case, current, need) if not_yet or step.change.gives_up != NOT_YET)
        best = next(helpful, None)
        if best is None:
            break
        earlier = [step for step in steps if step.change.group == best.change.group]
        merged = {name: value for step in earlier for name, value in step.delta.items()} | _delta(current, best.change.job)
        steps = [step for step in steps if step not in earlier] + [_Step(best.change, merged)]
        current = best.change.job
        need = case.need(current)
    return steps


def _helpful(case: _Case, job: Job, need: Need) -> list[_Tried]:
    """The best of each group from here, in order."""
    found = [*_best_of_groups(case, job, need), *filter(None, (_shorter(case, job, need),))]
    return sorted(found, key=lambda item: (item.change.gives_up, -item.saves_bytes))


def _delta(before: Job, after: Job) -> Delta:
    """Fields that differ, LoRA's as `lora.name` where both have one."""
    changed: Delta = {}
    for field in fields(Job):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old == new:
            continue
        if field.name == "lora" and old is not None and new is not None:
            changed |= {
                f"lora.{part.name}": getattr(new, part.name) for part in fields(new) if getattr(old, part.name) != getattr(new, part.name)
            }
        else:
            changed[field.name] = new
    return changed


def _apply(job: Job, steps: Iterable[_Step]) -> Job:
    for step in steps:
        lora: dict[str, Any] = {name.partition(".")[2]: value for name, value in step.delta.items() if name.startswith("lora.")}
        if lora and job.lora is not None:
            job = job.changed(lora=replace(job.lora, **lora))
        job = job.changed(**{name: value for name, value in step.delta.items() if not name.startswith("lora.")})
    return job


def _needed(case: _Case, job: Job, steps: list[_Step]) -> list[_Step]:
    """The steps without those that the others can do without, the dearest dropped first."""
    kept = list(steps)
    for item in reversed(steps):
        without = [other for other in kept if other is not item]
        smaller = _apply(job, without)
        if is_valid(smaller) and case.need(smaller).fits:
            kept = without
    return kept


def _join(case: _Case, job: Job, before: Need, steps: list[_Step]) -> _Tried | None:
    change = Change(
        change=" and ".join(_describe(step) for step in steps),
        job=_apply(job, steps),
        cost="; ".join(dict.fromkeys(step.change.cost for step in steps)),
        gives_up=max(step.change.gives_up for step in steps),
        group="combination",
    )
    return case.tried(change, before)


def _describe(step: _Step) -> str:
    """`field: value, field: value` as in a job file; a whole `lora` section in the change's own words."""
    from llamamath.planner.job_files.job_text import yaml_value

    if "lora" in step.delta:
        return step.change.change
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in step.delta.items()}
    return ", ".join(f"{name}: {yaml_value(value)}" for name, value in values.items())
