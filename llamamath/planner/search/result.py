"""What a search answers: the chosen job, what lies beside it, and what was rejected and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llamamath.planner.architecture import Architecture
from llamamath.planner.budget import Verdict
from llamamath.planner.estimate import Estimate
from llamamath.planner.job import Job
from llamamath.planner.throughput.step_time import RunCost, StepTime

DEVICE_MEMORY, HOST_MEMORY, DISK, HOURS, COST, NOTHING = "device memory", "host memory", "disk", "hours", "cost", "nothing"
"""What may decide a search. `nothing`: the fastest of all candidates fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A job with what it takes. time: None where the device's rates are unknown; cost: also where the number of samples is.

    notes: what the reader should know, such as qualities lowered because nothing else fitted.
    """

    job: Job
    architecture: Architecture
    estimate: Estimate
    verdict: Verdict
    time: StepTime | None = None
    cost: RunCost | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """One value of one knob (or a model) that was not chosen. what: `field: value`; shortfall: bytes beyond the limit, None if it fits."""

    what: str
    reason: str
    shortfall_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A job that is better than the chosen one in one way and worse in another. label: the way, in words."""

    label: str
    candidate: Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """chosen is None when nothing fits; then nearest is what misses the device's limit by least, and shortfall_bytes by how much.

    binding: what kept the search from something faster (or from anything at all). sources: where each value of the chosen job came
    from, by field. ranked_by: seconds of this device, or of a stand-in where its rates are unknown.
    """

    chosen: Candidate | None
    neighbours: tuple[Neighbour, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    binding: str
    nearest: Candidate | None = None
    shortfall_bytes: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)
    ranked_by: str = "expected time on this device"
    notes: tuple[str, ...] = ()
    evaluated: int = 0
    seconds: float = field(default=0.0, compare=False)
