"""A plan: a job that fits a device and a budget, what it was expected to take, and why it was chosen. Made here, and checked again."""

from __future__ import annotations

import datetime

from llamamath import __version__
from llamamath.errors import DoesNotFitError, FieldError
from llamamath.planner.architecture import Architecture
from llamamath.planner.budget import FITS, Budget
from llamamath.planner.device import Device
from llamamath.planner.estimate import Estimate
from llamamath.planner.fit.fitting import estimate_on, not_runnable, verdict_on
from llamamath.planner.plan.file import MOST_REJECTED, dump_plan, load_plan, parse_plan, plan_to_dict, write_plan
from llamamath.planner.plan.record import Plan, PlannedDevice, PlannedMemory, PlannedRun, PlannedTime
from llamamath.planner.search.request import Request
from llamamath.planner.search.result import HOST_MEMORY, Candidate, SearchResult
from llamamath.units import format_bytes

__all__ = [
    "Plan",
    "PlannedDevice",
    "PlannedMemory",
    "PlannedRun",
    "PlannedTime",
    "changed_versions",
    "check_plan",
    "dump_plan",
    "installed_versions",
    "load_plan",
    "make_plan",
    "parse_plan",
    "plan_to_dict",
    "write_plan",
]
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
"""What decides a step's memory and is noted with its version."""


def make_plan(
    request: Request,
    result: SearchResult,
    device: Device,
    budget: Budget,
    *,
    recipe: str | None = None,
    stage: str | None = None,
    created: str | None = None,
) -> Plan:
    """The Plan of a search that chose something. Raises DoesNotFitError for one that did not."""
    chosen = result.chosen
    if chosen is None:
        raise DoesNotFitError("nothing fits, so there is no plan", "see what was rejected")
    capability = device.compute_capability
    run = PlannedRun(recipe=recipe, stage=stage, num_samples=request.num_samples, num_train_epochs=float(request.num_train_epochs))
    return Plan(
        job=chosen.job,
        run=run,
        memory=memory_of(chosen.estimate),
        time=_time_of(chosen),
        device=PlannedDevice(
            name=device.name,
            kind=device.kind,
            total_bytes=device.total_bytes,
            limit_bytes=chosen.verdict.limit_bytes,
            limit_basis=device.limit_basis,
            compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        ),
        budget=budget,
        binding=result.binding,
        notes=(*chosen.notes, *result.notes),
        sources=result.sources,
        rejected=result.rejected[:MOST_REJECTED],
        versions=installed_versions(),
        created=created or datetime.date.today().isoformat(),
    )


def memory_of(estimate: Estimate) -> PlannedMemory:
    """What a plan keeps of an estimate."""
    peak = estimate.peak
    return PlannedMemory(
        phase=peak.phase,
        allocated_bytes=peak.allocated_bytes,
        reserved_bytes=peak.reserved_bytes,
        device_bytes=peak.device_bytes,
        low_bytes=peak.low_bytes,
        high_bytes=peak.high_bytes,
        host_peak_bytes=estimate.host.peak_bytes,
        host_pinned_bytes=estimate.host.pinned_bytes,
        trainable_parameters=estimate.trainable_parameters,
        total_parameters=estimate.total_parameters,
        basis=estimate.basis,
    )


def _time_of(chosen: Candidate) -> PlannedTime | None:
    time, cost = chosen.time, chosen.cost
    if time is None:
        return None
    known = PlannedTime(
        low_seconds_per_step=time.low_seconds,
        expected_seconds_per_step=time.expected_seconds,
        high_seconds_per_step=time.high_seconds,
        basis=time.basis,
    )
    if cost is None:
        return known
    return PlannedTime(
        low_seconds_per_step=time.low_seconds,
        expected_seconds_per_step=time.expected_seconds,
        high_seconds_per_step=time.high_seconds,
        num_steps=cost.num_steps,
        low_hours=cost.low_hours,
        expected_hours=cost.expected_hours,
        high_hours=cost.high_hours,
        low_usd=cost.low_usd,
        high_usd=cost.high_usd,
        basis=time.basis,
    )


def installed_versions() -> dict[str, str]:
    """llamamath's version and those of PACKAGES that are installed, from the installation's metadata; none is imported."""
    from importlib import metadata

    found = {"llamamath": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except (metadata.PackageNotFoundError, OSError, KeyError, ValueError):
            continue
    return found


def changed_versions(plan: Plan) -> tuple[str, ...]:
    """Packages whose version is another than when the plan was made, in words. Not an error: `check_plan` decides."""
    now = installed_versions()
    return tuple(
        f"{name} {plan.versions.get(name, 'absent')} -> {now.get(name, 'absent')}"
        for name in dict.fromkeys([*plan.versions, *now])
        if plan.versions.get(name) != now.get(name) and (name in plan.versions or name == "llamamath")
    )


def check_plan(plan: Plan, device: Device, architecture: Architecture, budget: Budget | None = None) -> Estimate:
    """Estimate the plan's job again for this device. budget: the plan's own if None.

    Raises DoesNotFitError, with the difference, if its high end no longer stays inside; FieldError if it asks for what cannot be run.
    """
    blocked = not_runnable(plan.job)
    if blocked:
        name, _, value = blocked[0].partition(": ")
        raise FieldError(name, value, "what training can run today")
    limits = plan.budget if budget is None else budget
    found = estimate_on(plan.job, architecture, device)
    verdict = verdict_on(found, device, limits)
    if verdict.verdict == FITS:
        return found
    high = found.peak.high_bytes
    if verdict.binding == HOST_MEMORY:
        known = [limit for limit in (device.host_memory_bytes, limits.ram_bytes) if limit is not None]
        short = found.host.peak_bytes - min(known)
        what = f"it needs {format_bytes(found.host.peak_bytes)} of RAM and may use {format_bytes(min(known))}"
    else:
        short = high - verdict.limit_bytes
        what = f"it may need {format_bytes(high)} and {device.name} leaves {format_bytes(verdict.limit_bytes)} ({device.limit_basis})"
    changed = high - plan.memory.high_bytes
    before = f"{plan.device.name} with {format_bytes(plan.device.limit_bytes)}, needing {format_bytes(plan.memory.high_bytes)}"
    drift = f"; the estimate itself has changed by {format_bytes(changed)}" if changed else ""
    raise DoesNotFitError(
        f"the plan no longer fits: {what}, {format_bytes(short)} short (planned {plan.created} for {before}{drift})",
        "plan again, free memory on the device, or ask `llamamath fit` what to change",
    )
