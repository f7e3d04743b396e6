"""Laws of the planner, over families, methods and knobs: what must hold for every job, whatever the numbers are."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llamamath.errors import FieldError
from llamamath.planner.architecture import Architecture
from llamamath.planner.budget import DOES_NOT_FIT, FITS, TIGHT, Budget, device_limit, host_limit, judge
from llamamath.planner.device import Device
from llamamath.planner.estimate import COMPONENTS, PHASES, Estimate
from llamamath.planner.fit.fitting import need_of, not_runnable
from llamamath.planner.fit.limits import largest
from llamamath.planner.fit.suggestions import suggest
from llamamath.planner.job import OPTIMIZERS, QUANTIZATIONS, Job, Lora, Rollout
from llamamath.planner.job_files.job_file import check_job, parse_job
from llamamath.planner.job_files.job_text import dump_job, job_to_dict
from llamamath.planner.job_files.yaml_json import parse_yaml
from llamamath.planner.memory import device_bytes_at_most, estimate
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.search.engine import search
from llamamath.planner.search.request import Request
from llamamath.planner.throughput.step_time import step_time

LAWS = settings(max_examples=60, deadline=None)
SLOW_LAWS = settings(max_examples=15, deadline=None)
GIB = 2**30

MODELS = (
    "meta-llama/Llama-3.2-1B",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen3-4B",
    "mistralai/Mistral-7B-v0.1",
    "google/gemma-2-2b",
    "microsoft/Phi-3-mini-4k-instruct",
    "ibm-granite/granite-3.1-2b-base",
    "meta-llama/Llama-3.2-11B-Vision",
)
STEADY_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adafactor", "sgd")
"""Optimizers that treat large and small tensors alike; bitsandbytes' do not."""
LOSSES = {"trl-1.16": ("chunked", "full", "liger"), "transformers-5": ("full", "liger"), "transformers-4.48": ("full", "liger")}


@cache
def architecture_of(model: str) -> Architecture:
    return resolve_model(model)


@st.composite
def jobs(draw: Any, methods: tuple[str, ...] = ("sft", "grpo", "dpo"), optimizers: tuple[str, ...] = OPTIMIZERS, lora: bool = False) -> Job:
    """Any valid job of any family. lora: never full fine-tuning."""
    model, method = draw(st.sampled_from(MODELS)), draw(st.sampled_from(methods))
    stack = draw(st.sampled_from(tuple(LOSSES))) if method == "sft" else "trl-1.16"
    quantization = draw(st.sampled_from(QUANTIZATIONS))
    adapters: Lora | None = Lora(
        r=draw(st.sampled_from((1, 4, 16, 64))),
        lora_dropout=draw(st.sampled_from((0.0, 0.1))),
        dtype=draw(st.sampled_from(("bfloat16", "float32"))),
        use_dora=draw(st.sampled_from((False, False, False, True))),
    )
    if quantization == "none" and not lora and draw(st.booleans()):
        adapters = None
    values: dict[str, Any] = {"max_length": draw(st.integers(2, 6000))}
    if method == "grpo":
        values = {
            "max_prompt_length": draw(st.integers(1, 1024)),
            "max_completion_length": draw(st.integers(1, 4096)),
            "num_generations": draw(st.sampled_from((2, 4, 8))),
            "steps_per_generation": draw(st.none() | st.sampled_from((2, 8))),
            "num_iterations": draw(st.sampled_from((1, 2))),
            "rollout": Rollout(engine=draw(st.sampled_from(("transformers", "transformers", "vllm")))),
        }
    job = Job(
        model=model,
        method=method,
        stack=stack,
        quantization=quantization,
        dtype=draw(st.sampled_from(("bfloat16", "bfloat16", "float16", "float32"))),
        lora=adapters,
        per_device_train_batch_size=draw(st.sampled_from((1, 2, 3, 4, 8))),
        gradient_accumulation_steps=draw(st.sampled_from((1, 4, 8))),
        beta=draw(st.sampled_from((0.0, 0.1))),
        padding=draw(st.booleans()),
        gradient_checkpointing=draw(st.booleans()),
        use_reentrant=draw(st.sampled_from((False, False, True))),
        kbit_preparation=quantization != "none" and draw(st.sampled_from((False, False, True))),
        attn_implementation=draw(st.sampled_from(("sdpa", "sdpa", "flash_attention_2", "eager"))),
        loss=draw(st.sampled_from(LOSSES[stack])),
        optim=draw(st.sampled_from(optimizers)),
        offload=draw(st.sampled_from(((), (), ("checkpoints",), ("weights",), ("checkpoints", "optimizer")))),
        num_images=draw(st.sampled_from((0, 1))) if "Vision" in model else 0,
        per_device_eval_batch_size=draw(st.sampled_from((None, None, 8))),
        **values,
    )
    try:
        check_job(job)
    except FieldError:
        assume(False)
    return job


def estimated(job: Job) -> Estimate:
    return estimate(job, architecture_of(job.model))


def no_less(before: Job, after: Job) -> None:
    """Memory of `after` is at least that of `before`: every figure, and every phase that both have."""
    small, large = estimated(before), estimated(after)
    for figure in ("allocated_bytes", "reserved_bytes", "device_bytes", "high_bytes"):
        assert getattr(large.peak, figure) >= getattr(small.peak, figure), figure
    for phase in small.phases:
        other = large.phase(phase.name)
        assert other is None or other.total_bytes >= phase.total_bytes, phase.name
    assert large.host.peak_bytes >= small.host.peak_bytes


# The laws of style.md


@LAWS
@given(jobs(), st.integers(1, 9))
def test_memory_rises_with_the_batch(job: Job, more: int) -> None:
    no_less(job, job.changed(per_device_train_batch_size=job.per_device_train_batch_size + more))


@LAWS
@given(jobs(methods=("sft", "dpo")), st.integers(1, 5000))
def test_memory_rises_with_the_length(job: Job, more: int) -> None:
    no_less(job, job.changed(max_length=(job.max_length or 0) + more))


@LAWS
@given(jobs(methods=("grpo",)), st.integers(1, 5000), st.sampled_from(["max_prompt_length", "max_completion_length"]))
def test_memory_rises_with_prompt_and_completion(job: Job, more: int, field: str) -> None:
    no_less(job, job.changed(**{field: getattr(job, field) + more}))


@LAWS
@given(jobs(methods=("grpo",)), st.integers(2, 4))
def test_memory_rises_with_the_rollout_and_the_group(job: Job, factor: int) -> None:
    steps = job.steps_per_generation or job.gradient_accumulation_steps
    accumulated = job.changed(gradient_accumulation_steps=factor * steps * job.num_iterations, steps_per_generation=steps)
    larger = accumulated.changed(steps_per_generation=factor * steps, num_generations=(job.num_generations or 0) * factor)
    if estimated(accumulated).phase("score") is None or job.beta != 0:  # else only one of them scores again
        no_less(accumulated, larger)


@LAWS
@given(jobs(optimizers=STEADY_OPTIMIZERS, lora=True), st.sampled_from((1, 3, 16, 100)))
def test_memory_rises_with_the_rank(job: Job, more: int) -> None:
    assert job.lora is not None
    no_less(job, job.changed(lora=replace(job.lora, r=job.lora.r + more)))


def test_why_the_law_of_the_rank_leaves_out_bitsandbytes_optimizers() -> None:
    """Their state becomes smaller when a tensor outgrows a threshold: paged from 100,000 elements, 8-bit from 4,096 (32-bit below)."""
    job = Job(model=MODELS[1], method="sft", max_length=64, optim="paged_adamw_32bit", lora=Lora(r=16))
    state = {}
    for rank in (16, 24):
        phase = estimated(job.changed(lora=Lora(r=rank))).phase("optimizer")
        assert phase is not None
        state[rank] = phase.optimizer_bytes
    assert state[24] < state[16]
    pageable = [estimated(job.changed(lora=Lora(r=rank))).host.peak_bytes for rank in (16, 24)]
    assert pageable[1] > pageable[0]


@LAWS
@given(jobs())
def test_components_add_up_and_the_peak_is_the_worst_phase(job: Job) -> None:
    found = estimated(job)
    names = [phase.name for phase in found.phases]
    assert names == [name for name in PHASES if name in names]
    for phase in found.phases:
        parts = [phase.component(name) for name in COMPONENTS]
        assert min(parts) >= 0 and sum(parts) == phase.total_bytes
    worst = max(found.phases, key=lambda phase: phase.total_bytes)
    assert found.peak.allocated_bytes == worst.total_bytes
    peak = found.phase(found.peak.phase)
    assert peak is not None and peak.total_bytes == worst.total_bytes


@LAWS
@given(jobs(), st.none() | st.integers(0, GIB))
def test_the_figures_are_in_order_and_the_quick_answer_is_the_long_one(job: Job, context_bytes: int | None) -> None:
    architecture = architecture_of(job.model)
    found = estimate(job, architecture, context_bytes=context_bytes)
    peak = found.peak
    assert 0 < peak.allocated_bytes <= peak.reserved_bytes <= peak.device_bytes <= peak.high_bytes
    assert peak.low_bytes <= peak.device_bytes
    assert 0 <= found.host.pinned_bytes <= found.host.peak_bytes
    assert device_bytes_at_most(job, architecture, context_bytes=context_bytes) == peak.high_bytes
    assert found.trainable_parameters > 0 and found.reasons


@LAWS
@given(jobs(), st.integers(0, 200 * GIB), st.none() | st.integers(0, 64 * GIB))
def test_a_verdict_is_taken_on_the_high_end(job: Job, limit_bytes: int, ram_bytes: int | None) -> None:
    device = Device(name="card", kind="cuda", total_bytes=limit_bytes, limit_bytes=limit_bytes, limit_basis="test")
    found, budget = estimated(job), Budget(ram_bytes=ram_bytes)
    verdict = judge(found, device, budget)
    enough = ram_bytes is None or found.host.peak_bytes <= ram_bytes
    expected = FITS if found.peak.high_bytes <= limit_bytes else TIGHT if found.peak.device_bytes <= limit_bytes else DOES_NOT_FIT
    assert verdict.verdict == (expected if enough else DOES_NOT_FIT)
    assert need_of(job, architecture_of(job.model), device, budget).fits == (verdict.verdict == FITS)


# Plans

_DEVICES = st.builds(
    lambda size, capability, ram, rated: Device(
        name="card",
        kind="cuda",
        total_bytes=size,
        limit_bytes=size,
        limit_basis="test",
        compute_capability=capability,
        host_memory_bytes=ram,
        bf16_flops_per_second=70e12 if rated else None,
        memory_bandwidth_bytes_per_second=900e9 if rated else None,
        host_to_device_bytes_per_second=25e9 if rated else None,
        price_usd_per_hour_low=0.2 if rated else None,
        price_usd_per_hour_high=0.4 if rated else None,
    ),
    st.integers(GIB, 80 * GIB),
    st.sampled_from((None, (7, 5), (8, 6), (9, 0))),
    st.none() | st.integers(2 * GIB, 64 * GIB),
    st.booleans(),
)
_BUDGETS = st.builds(
    Budget,
    vram_bytes=st.none() | st.integers(GIB, 80 * GIB),
    ram_bytes=st.none() | st.integers(3 * GIB, 64 * GIB),
    disk_bytes=st.none() | st.integers(2 * GIB, 60 * GIB),
    hours=st.none() | st.floats(0.5, 100),
    cost_usd=st.none() | st.floats(0.1, 50),
)
_REQUESTS = st.builds(
    Request,
    model=st.none() | st.sampled_from(MODELS),
    method=st.sampled_from(("sft", "grpo", "dpo")),
    fixed=st.sampled_from(({}, {"lora.r": 32}, {"quantization": "nf4"}, {"gradient_checkpointing": True, "optim": "adamw_8bit"})),
    effective_batch_size=st.none() | st.sampled_from((8, 12, 32)),
    num_samples=st.none() | st.integers(1, 10_000),
    objective=st.sampled_from(("throughput", "throughput", "context", "model", "cost")),
)


@SLOW_LAWS
@given(_REQUESTS, _DEVICES, _BUDGETS)
def test_a_plan_never_exceeds_its_budget(request: Request, device: Device, budget: Budget) -> None:
    result = search(request, device, budget, architecture_of)
    if result.chosen is None:
        assert result.binding and (result.rejected or result.notes)
        return
    best = result.chosen
    check_job(best.job)
    assert best.verdict.verdict == FITS and not not_runnable(best.job)
    assert best.estimate.peak.high_bytes <= device_limit(device, budget)
    assert best.estimate.host.peak_bytes <= (host_limit(device, budget) or 2**60)
    if best.cost is not None:
        assert best.cost.high_hours <= (budget.hours or 1e12)
        assert (best.cost.high_usd or 0.0) <= (budget.cost_usd or 1e12)
    if request.effective_batch_size is not None:
        assert best.job.effective_batch_size == request.effective_batch_size
    for key, value in request.fixed.items():
        section, _, name = key.partition(".")
        kept = getattr(best.job, section)
        assert (getattr(kept, name) if name else kept) == value


@SLOW_LAWS
@given(jobs(), st.integers(GIB, 24 * GIB))
def test_suggestions_save_what_they_say(job: Job, limit_bytes: int) -> None:
    device = Device(name="card", kind="cuda", total_bytes=limit_bytes, limit_bytes=limit_bytes, limit_basis="test")
    architecture = architecture_of(job.model)
    before = need_of(job, architecture, device, Budget())
    found = suggest(job, architecture, device, Budget())
    assert (found == ()) if before.fits else len(found) <= 6
    for item in found:
        check_job(item.job)
        after = need_of(item.job, architecture_of(item.job.model), device, Budget())
        assert item.saves_bytes == before.device_bytes - after.device_bytes > 0
        assert item.fits == after.fits and item.runnable == (not not_runnable(item.job))


@SLOW_LAWS
@given(jobs(), st.sampled_from(("context", "batch", "group")), st.integers(GIB, 80 * GIB))
def test_the_largest_fits_and_the_next_does_not(job: Job, what: str, limit_bytes: int) -> None:
    assume(what != "group" or job.method == "grpo")
    device = Device(name="card", kind="cuda", total_bytes=limit_bytes, limit_bytes=limit_bytes, limit_basis="test")
    architecture = architecture_of(job.model)
    found = largest(what, job, architecture, device)
    if found.job is not None:
        check_job(found.job)
        assert need_of(found.job, architecture, device, Budget()).fits
    if found.next_value_fails_by_bytes is not None:
        assert found.next_value_fails_by_bytes > 0


# Time


@LAWS
@given(jobs(), st.integers(1, 2000))
def test_time_rises_with_the_length_and_keeps_its_order(job: Job, more: int) -> None:
    device = Device(
        name="card",
        kind="cuda",
        total_bytes=GIB,
        limit_bytes=GIB,
        limit_basis="test",
        bf16_flops_per_second=70e12,
        memory_bandwidth_bytes_per_second=900e9,
        host_to_device_bytes_per_second=25e9,
    )
    field = "max_completion_length" if job.method == "grpo" else "max_length"
    longer = job.changed(**{field: getattr(job, field) + more})
    step, more_steps = step_time(job, architecture_of(job.model), device), step_time(longer, architecture_of(job.model), device)
    assert step is not None and more_steps is not None
    assert all(0 <= phase.low_seconds <= phase.expected_seconds <= phase.high_seconds for phase in step.phases)
    generate = [sum(phase.expected_seconds for phase in one.phases if phase.name == "generate") for one in (step, more_steps)]
    assert generate[1] >= generate[0]
    assert more_steps.tokens_per_step > step.tokens_per_step


# Round trips


@LAWS
@given(jobs())
def test_a_job_survives_yaml_and_json(job: Job) -> None:
    assert parse_job(parse_yaml(dump_job(job), "job.yaml")) == job  # type: ignore[arg-type]
    assert parse_job(job_to_dict(job)) == job


@pytest.mark.parametrize("model", MODELS)
def test_every_family_has_a_plan_on_some_card(model: str) -> None:
    device = Device(name="card", kind="cuda", total_bytes=80 * GIB, limit_bytes=79 * GIB, limit_basis="test", compute_capability=(8, 0))
    for method in ("sft", "grpo", "dpo"):
        assert search(Request(model=model, method=method), device, Budget(), architecture_of).chosen is not None
