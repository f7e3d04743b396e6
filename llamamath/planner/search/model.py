"""The search for one model: every frame, micro-batch and rollout that may fit, ranked by time, the first that keeps all budgets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llamamath.planner.architecture import Architecture
from llamamath.planner.budget import Budget, device_limit
from llamamath.planner.device import Device
from llamamath.planner.fit.fitting import estimate_on, need_of, shortfall_bytes, verdict_on
from llamamath.planner.job import Job
from llamamath.planner.memory.settings import WIDTHS
from llamamath.planner.parameters import count_parameters, trainable_parameters
from llamamath.planner.search.lengths import length_field, longest, with_length
from llamamath.planner.search.request import Request, Start
from llamamath.planner.search.result import COST, DEVICE_MEMORY, DISK, HOURS, Candidate
from llamamath.planner.search.space import (
    Concession,
    concessions,
    frames,
    least,
    micro_batches,
    optimizers,
    quantizations,
    rollouts,
    with_first_rank,
)
from llamamath.planner.search.stops import Stop, broken_budget, over_disk, over_time
from llamamath.planner.throughput.roofline import Rates, rates_of
from llamamath.planner.throughput.step_time import RunCost, StepTime, phase_seconds, run_cost, step_time
from llamamath.planner.throughput.token_lengths import GRANULARITY
from llamamath.units import format_bytes

STAND_IN = Rates(71.2e12, 936e9, 25.2e9)
"""Rates of an RTX 3090 (profiles/gpus.toml), by which jobs are ranked where a device's own are unknown. Only their ratios matter: more
FLOP, more launches, more bytes come out slower on any card. No time is reported from them."""
SAME_SPEED = 0.02
"""Times this close are equal, far inside the model's uncertainty: the plainer job is taken, then the one that needs less."""
LENGTH_STEP = 0.75
"""Objective context: a length that fits but breaks the hours or dollars is cut to this share, again and again."""


@dataclass(frozen=True, slots=True)
class Option:
    """A job that fits the device, its bytes to spare, and seconds per step, of this device or of the stand-in."""

    job: Job
    shortfall_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Miss:
    """A job that does not fit the device."""

    job: Job
    shortfall_bytes: int


@dataclass(slots=True)
class Exploration:
    """What was found at one concession."""

    options: list[Option] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSearch:
    """The outcome for one model. stop says what stands in the way where chosen is None.

    nearest: of all that was tried, what misses the device's limit by least. too_much: the best that fits the device but breaks a budget.
    """

    start: Start
    architecture: Architecture
    chosen: Candidate | None = None
    exploration: Exploration = field(default_factory=Exploration)
    stop: Stop | None = None
    nearest: Miss | None = None
    too_much: Candidate | None = None

    @property
    def binding(self) -> str:
        """What stands in the way."""
        return DEVICE_MEMORY if self.stop is None else self.stop.binding


@dataclass(slots=True)
class Searcher:
    """A device, a budget and a request, and how many jobs were judged so far."""

    request: Request
    device: Device
    budget: Budget
    evaluated: int = 0

    @property
    def rates(self) -> Rates:
        """What to rank by."""
        known = rates_of(self.device)
        if known is None or known.link_bytes_per_second is not None:
            return known or STAND_IN
        return replace(known, link_bytes_per_second=STAND_IN.link_bytes_per_second)

    def shortfall(self, job: Job, architecture: Architecture) -> int:
        """Bytes of the device that are missing; counted."""
        self.evaluated += 1
        return shortfall_bytes(job, architecture, self.device, self.budget)

    def seconds(self, job: Job, architecture: Architecture) -> float:
        """Expected seconds of a step, by which jobs are ranked. The effective batch is the same for all of them."""
        lengths = self.request.token_lengths
        typical = None if lengths is None else lengths.longest_of(job.per_device_train_batch_size)
        return sum(phase_seconds(job, architecture, self.rates, typical))

    def time_of(self, job: Job, architecture: Architecture) -> StepTime | None:
        """The step's time on this device, None where unknown."""
        return step_time(job, architecture, self.device, self.request.token_lengths)

    def cost_of(self, job: Job, time: StepTime | None) -> RunCost | None:
        """What the run costs, None where the time or the number of samples is unknown."""
        if time is None or self.request.num_samples is None:
            return None
        return run_cost(time, self.request.num_samples, self.request.num_train_epochs, job, self.device)

    def candidate(self, job: Job, architecture: Architecture, notes: tuple[str, ...] = ()) -> Candidate:
        """The job with everything that is known of it."""
        found = estimate_on(job, architecture, self.device)
        time = self.time_of(job, architecture)
        cost = self.cost_of(job, time)
        verdict = verdict_on(found, self.device, self.budget)
        return Candidate(job=job, architecture=architecture, estimate=found, verdict=verdict, time=time, cost=cost, notes=notes)

    def broken(self, candidate: Candidate) -> Stop | None:
        """The first budget that a candidate breaks; None if it keeps them all."""
        return broken_budget(candidate, self.device, self.budget)

    def _fits(self, job: Job, architecture: Architecture) -> bool:
        """Inside the device, and inside RAM where the job moves something there."""
        if self.shortfall(job, architecture) > 0:
            return False
        return not job.offload or need_of(job, architecture, self.device, self.budget).fits

    # -- one model

    def search(self, architecture: Architecture, start: Start) -> ModelSearch:
        """The best job for `start`; rank, lengths and group give way only while nothing fits. A rank is not lowered to save time."""
        outcome = ModelSearch(start=start, architecture=architecture)
        for concession in concessions(start, self.request):
            if outcome.binding in (HOURS, COST):
                concession = with_first_rank(concession, start)
            outcome = self.at(architecture, start, concession, outcome)
            if outcome.chosen is not None or outcome.binding == DISK:
                break
        return outcome

    def out_of_question(self, architecture: Architecture, start: Start, job: Job) -> ModelSearch | None:
        """Why no job like this one can be chosen, found by a few cheap questions; None if one may be.

        Disk; hours and dollars of a job that memory does not limit; device memory of the most economical frames.
        """
        whole = {"per_device_train_batch_size": start.effective_batch_size, "gradient_accumulation_steps": 1, "steps_per_generation": None}
        ideal = job.changed(**whole, gradient_checkpointing=False, offload=(), padding=False)
        bases = [ideal.changed(quantization=quantization) for quantization in quantizations(job, start)]
        costs = [self.cost_of(base, self.time_of(base, architecture)) for base in bases]
        cheapest = min(filter(None, costs), key=lambda cost: cost.high_hours, default=None)
        stop = over_disk(job, architecture, self.budget) or over_time(cheapest, self.budget, " even if memory were no limit")
        if stop is not None:
            return ModelSearch(start=start, architecture=architecture, stop=stop)
        misses = []
        for frame in self._economical(architecture, start, job):
            smallest = least(frame, start, self.device)
            if smallest is not None:
                misses.append(Miss(smallest, self.shortfall(smallest, architecture)))
                if misses[-1].shortfall_bytes <= 0:
                    return None
        if not misses:
            return None
        nearest = min(misses, key=lambda miss: miss.shortfall_bytes)
        return ModelSearch(start=start, architecture=architecture, stop=self._short(nearest), nearest=nearest)

    def _short(self, miss: Miss) -> Stop:
        limit = device_limit(self.device, self.budget)
        return Stop(DEVICE_MEMORY, f"{format_bytes(miss.shortfall_bytes)} of device memory short", miss.shortfall_bytes / max(limit, 1))

    def _economical(self, architecture: Architecture, start: Start, job: Job) -> list[Job]:
        """The frames that need least: checkpointed, and quantised where the unquantised weights alone are above the limit."""
        found = frames(job, start, self.request, architecture, self.device)
        found = tuple(frame for frame in found if frame.gradient_checkpointing) or found
        weights = count_parameters(architecture) * WIDTHS[job.dtype]
        too_large = weights > device_limit(self.device, self.budget)
        return [frame for frame in found if not too_large or frame.quantization != "none"] or list(found)

    def at(self, architecture: Architecture, start: Start, concession: Concession, before: ModelSearch | None = None) -> ModelSearch:
        """The best job at one concession. before: the outcome so far, for its nearest miss."""
        job = concession.job
        growing = self.request.objective == "context" and length_field(start) is not None
        if growing:
            job = longest(self.request, architecture, self.device, start, job, lambda grown: self._fits(grown, architecture)) or job
        while True:
            outcome = self._choose(architecture, start, self.explore(architecture, start, job), concession.notes, before)
            if outcome.chosen is not None or not growing or outcome.binding not in (HOURS, COST):
                return outcome
            shorter = with_length(job, start, round(job.sequence_length * LENGTH_STEP) // GRANULARITY * GRANULARITY)
            if shorter is None:
                return outcome
            job = shorter

    def _choose(
        self, architecture: Architecture, start: Start, found: Exploration, notes: tuple[str, ...], before: ModelSearch | None
    ) -> ModelSearch:
        misses = found.misses if before is None or before.nearest is None else [*found.misses, before.nearest]
        nearest = min(misses, key=lambda miss: miss.shortfall_bytes, default=None)
        stop, too_much = None if nearest is None else self._short(nearest), None
        for option in self.ranked(found.options, start):
            candidate = self.candidate(option.job, architecture, (*start.notes, *notes))
            stop = self.broken(candidate)
            if stop is None:
                chosen = self._with_first_rank(candidate, start)
                return ModelSearch(start=start, architecture=architecture, chosen=chosen, exploration=found, nearest=nearest)
            too_much = too_much or candidate
            if stop.binding in (DISK, HOURS, COST):  # every other option is slower, or takes the same disk
                break
        return ModelSearch(start=start, architecture=architecture, exploration=found, stop=stop, nearest=nearest, too_much=too_much)

    def _with_first_rank(self, candidate: Candidate, start: Start) -> Candidate:
        """The candidate with its rank restored, where a later concession made room for it."""
        whole = with_first_rank(Concession(job=candidate.job, notes=candidate.notes), start)
        if whole.job == candidate.job:
            return candidate
        restored = self.candidate(whole.job, candidate.architecture, whole.notes)
        return candidate if self.broken(restored) else restored

    def ranked(self, options: list[Option], start: Start) -> list[Option]:
        """By seconds; within SAME_SPEED of the fastest without offload before with, the preferred optimizer, the unquantised base, then
        by memory. What follows the first is in the order in which it would be taken if the first breaks a budget."""
        left = sorted(options, key=lambda option: (option.seconds, option.shortfall_bytes))
        ordered: list[Option] = []
        known = optimizers(start.job, start, self.device)

        def plainness(option: Option) -> tuple[int, int, bool, int, float]:
            job = option.job
            return len(job.offload), known.index(job.optim), job.quantization != "none", option.shortfall_bytes, option.seconds

        while left:
            equal = [option for option in left if option.seconds <= left[0].seconds * (1 + SAME_SPEED)]
            ordered += sorted(equal, key=plainness)
            left = left[len(equal) :]
        return ordered

    def explore(self, architecture: Architecture, start: Start, job: Job) -> Exploration:
        """Every job of the space that fits, and where each direction stops fitting.

        Memory rises with the micro-batch and with the rollout, so a frame ends at its first micro-batch that is further above the limit
        than the gradients that accumulation keeps (a single micro-batch per step keeps none), and a rollout at its first that fails.
        """
        found = Exploration()
        slack = 4 * trainable_parameters(architecture, job.lora) * 21 // 20 + 2**20
        for frame in frames(job, start, self.request, architecture, self.device):
            known = optimizers(frame, start, self.device)
            for batch in micro_batches(frame, start):
                worst = None
                for index, sized in enumerate(rollouts(frame, start, batch)):
                    miss = self._try(architecture, sized, known, found)
                    if miss is not None:
                        worst = miss if index == 0 else None
                        break
                if worst is not None and worst.shortfall_bytes > slack:
                    break
        return found

    def _try(self, architecture: Architecture, sized: Job, known: tuple[str, ...], found: Exploration) -> Miss | None:
        """The first optimizer that fits, into the options; else the smallest miss, into the misses and back."""
        smallest: Miss | None = None
        for optim in known:
            job = sized.changed(optim=optim)
            short = self.shortfall(job, architecture)
            if short <= 0:
                found.options.append(Option(job, short, self.seconds(job, architecture)))
                return None
            if smallest is None or short < smallest.shortfall_bytes:
                smallest = Miss(job, short)
        assert smallest is not None
        found.misses.append(smallest)
        return smallest
