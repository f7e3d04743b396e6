"""What a plan holds. `plan.py` makes and checks plans, `plan_file.py` reads and writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llamamath.planner.budget import Budget
from llamamath.planner.job import Job
from llamamath.planner.search.result import Rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMemory:
    """The estimate of the job when it was planned."""

    phase: str
    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int
    low_bytes: int
    high_bytes: int
    host_peak_bytes: int
    host_pinned_bytes: int
    trainable_parameters: int
    total_parameters: int
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTime:
    """Seconds of an optimizer step, and of the run in hours and US dollars where the number of samples and the price were known."""

    low_seconds_per_step: float
    expected_seconds_per_step: float
    high_seconds_per_step: float
    num_steps: int | None = None
    low_hours: float | None = None
    expected_hours: float | None = None
    high_hours: float | None = None
    low_usd: float | None = None
    high_usd: float | None = None
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDevice:
    """What the job was judged against."""

    name: str
    kind: str
    total_bytes: int
    limit_bytes: int
    limit_basis: str
    compute_capability: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """How much is trained, and the recipe and stage that say with what learning rate, data and rewards."""

    recipe: str | None = None
    stage: str | None = None
    num_samples: int | None = None
    num_train_epochs: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Training reads `job` and `run`; the rest is what was expected and why. created: a date, YYYY-MM-DD."""

    job: Job
    run: PlannedRun
    memory: PlannedMemory
    time: PlannedTime | None = None
    device: PlannedDevice
    budget: Budget
    binding: str
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    rejected: tuple[Rejection, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str
