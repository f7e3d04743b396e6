"""What the user is willing to spend, and whether an Estimate stays inside it."""

from __future__ import annotations

from dataclasses import dataclass

from llamamath.planner.device import Device
from llamamath.planner.estimate import Estimate

FITS, TIGHT, DOES_NOT_FIT = "fits", "tight", "does_not_fit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Upper bounds; None is no bound. Hours and US dollars are for the whole run."""

    vram_bytes: int | None = None
    ram_bytes: int | None = None
    disk_bytes: int | None = None
    hours: float | None = None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`fits`: even `high_bytes` is inside the limit. `tight`: the expected device bytes are, `high_bytes` is not. Else `does_not_fit`.

    `binding` names what decides: `device memory`, `host memory`. `headroom_bytes` = limit - high, negative when it does not fit.
    """

    verdict: str
    limit_bytes: int
    headroom_bytes: int
    binding: str


def device_limit(device: Device, budget: Budget) -> int:
    """Bytes of device memory a run may use: the device's limit or the budget's, whichever is smaller."""
    return device.limit_bytes if budget.vram_bytes is None else min(device.limit_bytes, budget.vram_bytes)


def host_limit(device: Device, budget: Budget) -> int | None:
    """Bytes of RAM a run may use: the machine's or the budget's, whichever is smaller; None when neither is known."""
    known = [limit for limit in (device.host_memory_bytes, budget.ram_bytes) if limit is not None]
    return min(known) if known else None


def judge(estimate: Estimate, device: Device, budget: Budget | None = None) -> Verdict:
    """The verdict on one estimate. Where RAM is the device, `fitting.verdict_on` first takes the process's own share out of the limit."""
    budget = budget or Budget()
    limit = device_limit(device, budget)
    peak = estimate.peak
    host = host_limit(device, budget)
    if device.kind != "cpu" and host is not None and estimate.host.peak_bytes > host:
        return Verdict(verdict=DOES_NOT_FIT, limit_bytes=limit, headroom_bytes=limit - peak.high_bytes, binding="host memory")
    if peak.high_bytes <= limit:
        verdict = FITS
    elif peak.device_bytes <= limit:
        verdict = TIGHT
    else:
        verdict = DOES_NOT_FIT
    return Verdict(verdict=verdict, limit_bytes=limit, headroom_bytes=limit - peak.high_bytes, binding="device memory")
