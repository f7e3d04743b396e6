"""Predicted against published memory: every run that a Job can describe, compared, and the rest accounted for.

Pure functions: the prediction, the models and the cards' capacities come in as functions, so that a test can put its own in their place.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from llamamath.errors import LlamamathError
from llamamath.planner.accuracy.caveats import CAVEATS, explains
from llamamath.planner.accuracy.jobs import GROUPS, Excluded, MappedRun, Resolver, row_to_job
from llamamath.planner.accuracy.rows import PublishedRun
from llamamath.planner.architecture import Architecture
from llamamath.planner.estimate import Estimate
from llamamath.planner.job import Job
from llamamath.planner.memory import Conditions
from llamamath.planner.memory.interval import formula_error

Predictor = Callable[[Job, Architecture, Conditions], Estimate]
Capacity = Callable[[PublishedRun], int | None]

MISS = 0.15
"""A prediction further from the figure than this is a miss, and needs a reason."""

NEAR_CAPACITY = 0.93
"""From this share of the card on, reserved and device figures are held down by the card (the allocator frees its cache and retries)."""

FULL_TRAINING_BYTES_PER_PARAMETER = {"bfloat16": 8, "float16": 8, "float32": 16}
"""Weights, gradients and AdamW's two states in the weights' dtype: what full fine-tuning with a resident AdamW cannot go below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One published figure and its prediction."""

    mapped: MappedRun
    estimate: Estimate
    measured_bytes: int
    capacity_bytes: int | None = None

    @property
    def predicted_bytes(self) -> int:
        """The figure of the estimate that the published one is (allocated, reserved or device)."""
        peak = self.estimate.peak
        by_kind = {"allocated": peak.allocated_bytes, "reserved": peak.reserved_bytes, "device": peak.device_bytes}
        return by_kind[self.mapped.measure]

    @property
    def error(self) -> float:
        """predicted / measured - 1: negative when the prediction is too low."""
        return self.predicted_bytes / self.measured_bytes - 1

    @property
    def above_high(self) -> bool:
        """The figure is above the bound on what it measures.

        Allocated: the prediction and the formula's own error (1 % or 5 %, `interval.formula_error`). Reserved and device: the high end of
        the interval, which bounds the device. nvidia-smi's figure beside an allocated one is judged by `device_above_high`.
        """
        peak = self.estimate.peak
        if self.mapped.measure == "allocated":
            return self.measured_bytes > peak.allocated_bytes * (1 + formula_error(self.mapped.job))
        return self.measured_bytes > peak.high_bytes

    @property
    def device_above_high(self) -> bool | None:
        """nvidia-smi's figure of the same run is above the high end of the interval; None without one."""
        smi = self.mapped.run.nvidia_smi_bytes
        return None if smi is None else smi > self.estimate.peak.high_bytes

    @property
    def caveats(self) -> tuple[str, ...]:
        """The run's caveats, and those that only the prediction or the card brings out."""
        found = list(self.mapped.caveats)
        capacity = self.capacity_bytes
        if self.mapped.measure != "allocated" and capacity is not None and self.measured_bytes > NEAR_CAPACITY * capacity:
            found.append("near-capacity")
        published = self.mapped.run.trainable_params
        if published and abs(self.estimate.trainable_parameters / published - 1) > 0.01:
            found.append("trainable-differs")
        return tuple(found)

    @property
    def is_miss(self) -> bool:
        """More than MISS off."""
        return abs(self.error) > MISS

    @property
    def reasons(self) -> tuple[str, ...]:
        """Caveats that can cause a miss in this direction, the heaviest first (the order of CAVEATS); empty if it is unexplained."""
        return tuple(key for key in CAVEATS if key in self.caveats and explains(key, over=self.error > 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the planner would have said about a run on its card, and what happened. `happened`: `oom` or `ran`."""

    mapped: MappedRun
    estimate: Estimate
    capacity_bytes: int
    happened: str

    @property
    def predicted(self) -> str:
        """`fits` if the interval's high end does, `tight` if the expected figure does, else `does_not_fit`."""
        peak = self.estimate.peak
        if peak.high_bytes <= self.capacity_bytes:
            return "fits"
        return "tight" if peak.device_bytes <= self.capacity_bytes else "does_not_fit"

    @property
    def right(self) -> bool:
        """A run that failed was not said to fit; one that ran was not said not to."""
        return self.predicted != ("fits" if self.happened == "oom" else "does_not_fit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A set of comparisons in numbers. Errors are shares of the measured figure; `worst` keeps its sign."""

    rows: int
    mean_error: float
    median_error: float
    mean_signed_error: float
    worst_error: float
    worst_id: str
    share_under: float
    share_above_high: float
    share_missed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Everything about one file of runs. `total` counts its runs; each is in `comparisons`, `verdicts` or `excluded`."""

    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    excluded: tuple[Excluded, ...]
    total: int
    malformed: int = 0

    def in_group(self, group: str) -> tuple[Comparison, ...]:
        """Comparisons of one of GROUPS."""
        return tuple(comparison for comparison in self.comparisons if comparison.mapped.group == group)

    @property
    def groups(self) -> dict[str, Summary]:
        """Summary per group that has rows, in the order of GROUPS."""
        summaries = {group: summarise(self.in_group(group)) for group in GROUPS}
        return {group: summary for group, summary in summaries.items() if summary is not None}

    @property
    def misses(self) -> tuple[Comparison, ...]:
        """Comparisons more than MISS off, worst first."""
        return tuple(sorted((c for c in self.comparisons if c.is_miss), key=lambda c: -abs(c.error)))

    @property
    def excluded_by_reason(self) -> dict[str, tuple[Excluded, ...]]:
        """Excluded runs by reason, the commonest first."""
        reasons: dict[str, list[Excluded]] = {}
        for row in self.excluded:
            reasons.setdefault(row.reason, []).append(row)
        return {reason: tuple(rows) for reason, rows in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))}


def summarise(comparisons: Sequence[Comparison]) -> Summary | None:
    """Mean and median of |error|, the worst, and the shares; None for no rows. Ties for the worst go to the first id."""
    if not comparisons:
        return None
    errors = [comparison.error for comparison in comparisons]
    worst = min(comparisons, key=lambda comparison: (-abs(comparison.error), comparison.mapped.run.id))
    rows = len(comparisons)
    return Summary(
        rows=rows,
        mean_error=statistics.fmean(abs(error) for error in errors),
        median_error=statistics.median(abs(error) for error in errors),
        mean_signed_error=statistics.fmean(errors),
        worst_error=worst.error,
        worst_id=worst.mapped.run.id,
        share_under=sum(error < 0 for error in errors) / rows,
        share_above_high=sum(comparison.above_high for comparison in comparisons) / rows,
        share_missed=sum(comparison.is_miss for comparison in comparisons) / rows,
    )


def compare(
    runs: Iterable[PublishedRun],
    predict: Predictor,
    *,
    resolve: Resolver,
    capacity: Capacity = lambda run: run.capacity_bytes,
    malformed: int = 0,
) -> Accuracy:
    """Every run predicted and compared, or excluded with the reason. A job the planner refuses is excluded with its message."""
    comparisons: list[Comparison] = []
    verdicts: list[Verdict] = []
    excluded: list[Excluded] = []
    total = 0
    for run in runs:
        total += 1
        mapped = row_to_job(run, resolve)
        if isinstance(mapped, Excluded):
            excluded.append(mapped)
            continue
        limit = capacity(run)
        try:
            estimate = predict(mapped.job, mapped.architecture, replace(mapped.conditions, capacity_bytes=limit))
        except LlamamathError as error:
            excluded.append(Excluded(run=run, reason="the planner refuses the job", detail=error.message))
            continue
        if contradicts_itself(mapped, estimate):
            excluded.append(Excluded(run=run, reason=CONTRADICTION, detail=f"{(mapped.measured_bytes or 0) / 2**30:.2f} GiB"))
            continue
        if mapped.measured_bytes is not None:
            comparison = Comparison(mapped=mapped, estimate=estimate, measured_bytes=mapped.measured_bytes, capacity_bytes=limit)
            comparisons.append(comparison)
        if limit is not None:
            happened = "oom" if mapped.outcome == "oom" else "ran"
            verdicts.append(Verdict(mapped=mapped, estimate=estimate, capacity_bytes=limit, happened=happened))
        elif mapped.measured_bytes is None:
            excluded.append(Excluded(run=run, reason="capacity of the GPU not known", detail=run.gpu or "GPU not stated"))
    return Accuracy(comparisons=tuple(comparisons), verdicts=tuple(verdicts), excluded=tuple(excluded), total=total, malformed=malformed)


CONTRADICTION = "the figure is below weights, gradients and AdamW states of the run's own configuration"
"""A published figure that its own configuration rules out, whatever the activations."""


def contradicts_itself(mapped: MappedRun, estimate: Estimate) -> bool:
    """Full fine-tuning with a resident AdamW, measured below the bytes of weights + gradients + two states alone."""
    resident = mapped.job.optim in ("adamw_torch", "adamw_torch_fused") and not mapped.job.offload
    if mapped.measured_bytes is None or mapped.job.lora is not None or not resident or mapped.job.method == "grpo":
        return False
    return mapped.measured_bytes < FULL_TRAINING_BYTES_PER_PARAMETER[mapped.job.dtype] * estimate.total_parameters
