"""How long an optimizer step takes, phase by phase, and what a run costs: a roofline with its range, or nothing where rates are unknown."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from llamamath.planner.architecture import Architecture
from llamamath.planner.device import Device
from llamamath.planner.job import Job
from llamamath.planner.memory.from_job import attention_kernel, is_masked
from llamamath.planner.throughput.roofline import (
    Rates,
    decode_seconds,
    micro_batch,
    optimizer_seconds,
    rates_of,
    streamed_seconds,
    work_of_job,
)
from llamamath.planner.throughput.token_lengths import TokenLengths

UNCERTAINTY = 2.0
"""Factor either way around the expected time before a calibration run."""
OFFLOAD_COST = 1.02
"""Checkpoint inputs offloaded asynchronously: 0 to 2 % slower from 8k tokens on (claimed, axolotl pull request 3776)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTime:
    """Seconds of one phase within one optimizer step. `name` is one of estimate.PHASES."""

    name: str
    low_seconds: float
    expected_seconds: float
    high_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One optimizer step. samples_per_step: sft sequences, dpo pairs, grpo completions."""

    phases: tuple[PhaseTime, ...]
    samples_per_step: int
    tokens_per_step: float
    """Tokens that are trained on, padding included."""
    notes: tuple[str, ...] = ()
    basis: str = "roofline, not calibrated on this machine"

    @property
    def low_seconds(self) -> float:
        """The whole step at best."""
        return sum(phase.low_seconds for phase in self.phases)

    @property
    def expected_seconds(self) -> float:
        """The whole step as expected."""
        return sum(phase.expected_seconds for phase in self.phases)

    @property
    def high_seconds(self) -> float:
        """The whole step at worst."""
        return sum(phase.high_seconds for phase in self.phases)

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens per second, as expected."""
        return self.tokens_per_step / self.expected_seconds

    @property
    def samples_per_second(self) -> float:
        """Samples per second, as expected."""
        return self.samples_per_step / self.expected_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """A whole run. US dollars are None where the device has no known price."""

    num_steps: int
    low_hours: float
    expected_hours: float
    high_hours: float
    low_usd: float | None
    high_usd: float | None


Phases = tuple[float, float, float, float, float]
"""Seconds of generate, score, forward, backward, optimizer."""
_NAMES = ("generate", "score", "forward", "backward", "optimizer")


def phase_seconds(job: Job, architecture: Architecture, rates: Rates, length: float | None = None, *, overlap: bool = True) -> Phases:
    """Expected seconds of each phase of one optimizer step, all its micro-batches together.

    length: tokens of the sequences (sft, dpo) or of the prompts (grpo) where they are shorter than the job allows. Completions are
    taken at full length: `generate` runs until its longest row ends. overlap: host copies run beside the arithmetic. Copies over a
    link of unknown rate count as nothing, so callers must ask `needs_link` first.
    """
    work = work_of_job(job, architecture)
    completion = job.max_completion_length or 0
    whole = _within(length, job.max_length) if job.method != "grpo" else _within(length, job.max_prompt_length) + completion
    rows = job.per_device_train_batch_size * (2 if job.method == "dpo" else 1)
    scored = rows * (completion if job.method == "grpo" else max(0.0, whole - 1))
    kernel = attention_kernel(job, architecture, is_masked(job, architecture))
    square = kernel == "eager" or (kernel == "efficient" and is_masked(job, architecture))
    part = micro_batch(job, work, rates, rows=rows, length=whole, scored=scored, whole_square=square)
    count = job.gradient_accumulation_steps
    passed = streamed_seconds(job, work, rates)
    copied = 0.0
    if "checkpoints" in job.offload and job.gradient_checkpointing and rates.link_bytes_per_second is not None:
        copied = 2.0 * rows * whole * work.hidden_size * work.layers / rates.link_bytes_per_second * OFFLOAD_COST
    forward = _beside(part.forward, copied + passed, overlap)
    backward = _beside(part.backward, copied + passed * (2 if job.gradient_checkpointing else 1), overlap)
    if copied:
        forward, backward = forward * OFFLOAD_COST, backward * OFFLOAD_COST
    scoring = _beside(part.forward, passed, overlap) + part.head_forward
    scorings, per_update = _scorings(job)
    generate = 0.0
    if job.method == "grpo":
        calls = count / ((job.steps_per_generation or count) * job.num_iterations)
        all_rows = job.generation_batch_size
        prompt = whole - completion
        prefill = micro_batch(job, work, rates, rows=all_rows, length=prompt, scored=all_rows, whole_square=square)
        repeated = kernel == "efficient" and architecture.num_attention_heads > architecture.num_key_value_heads
        decode = decode_seconds(job, work, rates, rows=all_rows, prompt=prompt, completion=completion, repeated=repeated)
        generate = calls * (prefill.forward + prefill.head_forward + decode)
    return (
        generate,
        count * per_update * scorings * scoring,
        count * (forward + part.head_forward),
        count * (backward + part.head_backward),
        optimizer_seconds(job, work, rates),
    )


def _within(length: float | None, most: int | None) -> float:
    return float(most or 0) if length is None else min(length, float(most or 0))


def _beside(arithmetic: float, copying: float, overlap: bool) -> float:
    return max(arithmetic, copying) if overlap else arithmetic + copying


def _scorings(job: Job) -> tuple[int, float]:
    """(no-gradient passes over each sequence, how often per optimizer step): the reference's, and the old policy's where TRL 1.16 needs
    it (accumulation not a multiple of the rollout's steps, or sampled by vLLM). GRPO scores once per rollout."""
    if job.method == "dpo":
        return 1, 1.0
    if job.method != "grpo":
        return 0, 1.0
    steps = job.steps_per_generation or job.gradient_accumulation_steps
    old = job.gradient_accumulation_steps % (steps * job.num_iterations) != 0 or job.rollout.engine == "vllm"
    return int(job.beta != 0) + int(old), 1.0 / job.num_iterations


def needs_link(job: Job) -> bool:
    """Whether the step copies between host and device, so that its time depends on that link."""
    return bool(job.offload) and (job.gradient_checkpointing or job.offload != ("checkpoints",))


def step_time(job: Job, architecture: Architecture, device: Device, lengths: TokenLengths | None = None) -> StepTime | None:
    """The time of one optimizer step; None where the device's rates are unknown.

    low and expected: sequences as long as the data's longest of a micro-batch is expected to be, or as the job allows if `lengths` is
    not given; high: as long as the job allows, and host copies that nothing hides. A factor UNCERTAINTY either way. Left out: loading,
    data loading, rewards, evaluation, checkpoints on disk.
    """
    rates = rates_of(device)
    if rates is None or (needs_link(job) and rates.link_bytes_per_second is None):
        return None
    typical = None if lengths is None else lengths.longest_of(job.per_device_train_batch_size)
    expected = phase_seconds(job, architecture, rates, typical)
    worst = phase_seconds(job, architecture, rates, overlap=False)
    phases = tuple(
        PhaseTime(name=name, low_seconds=seconds / UNCERTAINTY, expected_seconds=seconds, high_seconds=max(seconds, most) * UNCERTAINTY)
        for name, seconds, most in zip(_NAMES, expected, worst, strict=True)
        if most > 0
    )
    rows = job.effective_batch_size * (2 if job.method == "dpo" else 1)
    completion = job.max_completion_length or 0
    length = _within(typical, job.max_prompt_length) + completion if job.method == "grpo" else _within(typical, job.max_length)
    notes = [f"within a factor {UNCERTAINTY:g} either way until this machine is calibrated"]
    if job.method == "grpo":
        notes.append("completions are taken at their full length: generation runs until its longest row ends")
    return StepTime(phases=phases, samples_per_step=job.effective_batch_size, tokens_per_step=rows * length, notes=tuple(notes))


def num_steps(num_samples: int, epochs: float, job: Job) -> int:
    """Optimizer steps of a run: samples * epochs / effective batch; for GRPO samples are prompts, each giving `num_generations`
    completions that are trained on `num_iterations` times, and the effective batch counts completions."""
    per_sample = (job.num_generations or 1) * job.num_iterations if job.method == "grpo" else 1
    return max(1, ceil(num_samples * epochs * per_sample / job.effective_batch_size - 1e-9))


def run_cost(step: StepTime, num_samples: int, epochs: float, job: Job, device: Device) -> RunCost:
    """Hours and dollars: steps * seconds, times the device's price range (lowest price * lowest hours to highest * highest)."""
    steps = num_steps(num_samples, epochs, job)
    low, expected, high = (steps * seconds / 3600 for seconds in (step.low_seconds, step.expected_seconds, step.high_seconds))
    cheap, dear = device.price_usd_per_hour_low, device.price_usd_per_hour_high
    return RunCost(
        num_steps=steps,
        low_hours=low,
        expected_hours=expected,
        high_hours=high,
        low_usd=None if cheap is None else cheap * low,
        high_usd=None if dear is None else dear * high,
    )
