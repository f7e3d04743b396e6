"""One job on one device: its architecture, estimate, verdict and suggestions, together. What `fit` shows and prints as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamamath.planner.budget import FITS, Budget, Verdict
from llamamath.planner.contract import device_document, fit_document

if TYPE_CHECKING:
    from llamamath.planner.architecture import Architecture
    from llamamath.planner.device import Device
    from llamamath.planner.estimate import Estimate
    from llamamath.planner.fit.suggestions import Suggestion
    from llamamath.planner.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A job with everything that is said about it. origins: where each of its values came from."""

    job: Job
    origins: Mapping[str, str]
    architecture: Architecture
    device: Device
    budget: Budget
    estimate: Estimate
    verdict: Verdict
    suggestions: tuple[Suggestion, ...]

    @property
    def fits(self) -> bool:
        """Fits even at the upper bound; a tight job does not."""
        return self.verdict.verdict == FITS

    def document(self) -> dict[str, object]:
        """design.md's document, with the device and the origins added."""
        found = fit_document(self.job, self.estimate, self.verdict, self.suggestions)
        return found | {"device": device_document(self.device), "origins": dict(self.origins)}


def judge_job(
    job: Job, architecture: Architecture, device: Device, budget: Budget, origins: Mapping[str, str] | None = None, *, suggestions: int = 6
) -> Judged:
    """Estimate and judge; at most so many suggestions, and only where something has to change."""
    from llamamath.planner.fit.fitting import estimate_on, verdict_on

    estimate = estimate_on(job, architecture, device)
    verdict = verdict_on(estimate, device, budget)
    found: tuple[Suggestion, ...] = ()
    if verdict.verdict != FITS and suggestions > 0:
        from llamamath.planner.fit.suggestions import suggest

        found = suggest(job, architecture, device, budget, limit=suggestions)
    return Judged(
        job=job,
        origins=origins or {},
        architecture=architecture,
        device=device,
        budget=budget,
        estimate=estimate,
        verdict=verdict,
        suggestions=found,
    )
