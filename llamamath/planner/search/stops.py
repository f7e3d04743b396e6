"""Which budget a job breaks, at its high end: memory, disk, hours, dollars. What is unknown breaks nothing."""

from __future__ import annotations

from dataclasses import dataclass

from llamamath.planner.architecture import Architecture
from llamamath.planner.budget import FITS, Budget, host_limit
from llamamath.planner.device import Device
from llamamath.planner.fit.fitting import disk_bytes
from llamamath.planner.job import Job
from llamamath.planner.search.result import COST, DISK, HOST_MEMORY, HOURS, Candidate
from llamamath.planner.throughput.step_time import RunCost
from llamamath.units import format_bytes, format_seconds


@dataclass(frozen=True, slots=True)
class Stop:
    """A budget that is broken: which, in words, and by what share of it."""

    binding: str
    reason: str
    excess: float


def broken_budget(candidate: Candidate, device: Device, budget: Budget) -> Stop | None:
    """The first budget that a candidate breaks, at its high end; None if it keeps them all."""
    verdict = candidate.verdict
    if verdict.verdict != FITS:
        short, limit = -verdict.headroom_bytes, verdict.limit_bytes
        if verdict.binding == HOST_MEMORY:
            limit = host_limit(device, budget) or 0
            short = candidate.estimate.host.peak_bytes - limit
        return Stop(verdict.binding, f"{format_bytes(short)} of {verdict.binding} short", short / max(limit, 1))
    return over_disk(candidate.job, candidate.architecture, budget) or over_time(candidate.cost, budget)


def over_disk(job: Job, architecture: Architecture, budget: Budget) -> Stop | None:
    """Whether model and checkpoints take more disk than the budget gives."""
    needed, limit = disk_bytes(job, architecture), budget.disk_bytes
    if limit is None or needed <= limit:
        return None
    reason = f"model and checkpoints take {format_bytes(needed)} of disk, {format_bytes(needed - limit)} too much"
    return Stop(DISK, reason, needed / limit - 1)


def over_time(cost: RunCost | None, budget: Budget, condition: str = "") -> Stop | None:
    """Whether the run may take more hours or dollars than the budget gives. condition: words to add to the reason."""
    if cost is None:
        return None
    hours, usd = budget.hours, budget.cost_usd
    if hours is not None and cost.high_hours > hours:
        expected = condition or f" (expected {format_seconds(cost.expected_hours * 3600)})"
        return Stop(HOURS, f"may take {format_seconds(cost.high_hours * 3600)}{expected}", cost.high_hours / hours - 1)
    if usd is not None and cost.high_usd is not None and cost.high_usd > usd:
        return Stop(COST, f"may cost {cost.high_usd:,.2f} US dollars{condition}", cost.high_usd / usd - 1)
    return None
