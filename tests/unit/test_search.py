"""The search keeps what was fixed, never exceeds a budget, says why, and answers at once."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from llamamath.errors import FieldError, UnknownNameError, UsageError
from llamamath.planner.architecture import Architecture
from llamamath.planner.budget import FITS, Budget, device_limit
from llamamath.planner.device import Device
from llamamath.planner.fit.fitting import disk_bytes, estimate_on, need_of, verdict_on
from llamamath.planner.job import Job
from llamamath.planner.job_files.job_file import check_job
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.probe.devices import device_for
from llamamath.planner.search.engine import Candidate, SearchResult, search
from llamamath.planner.search.model_choice import least_weight_bytes, model_scores, ranked_models, smaller_models
from llamamath.planner.search.request import Request, request_of_stage, start
from llamamath.planner.search.result import COST, DEVICE_MEMORY, DISK, HOST_MEMORY, HOURS
from llamamath.planner.search.space import divisors
from llamamath.planner.throughput.step_time import phase_seconds
from llamamath.planner.throughput.token_lengths import measure
from llamamath.profiles.models import find_model, model_names
from llamamath.profiles.recipes import Recipe, Stage, recipes

GIB = 2**30
LLAMA_3B = "meta-llama/Llama-3.2-3B-Instruct"
MATH_1_5B = "Qwen/Qwen2.5-Math-1.5B"


@cache
def card(name: str) -> Device:
    return device_for(name)[0]


def run(gpu: str, budget: Budget | None = None, **request: Any) -> SearchResult:
    return search(Request(**request), card(gpu), budget or Budget(), resolve_model)


def chosen(result: SearchResult) -> Candidate:
    assert result.chosen is not None, result.notes
    return result.chosen


def shown(result: SearchResult) -> list[Candidate]:
    return [chosen(result), *(neighbour.candidate for neighbour in result.neighbours)]


CASES: list[tuple[str, dict[str, Any]]] = [
    ("rtx3090", {"model": LLAMA_3B}),
    ("rtx4060", {"model": MATH_1_5B}),
    ("rtx3080ti", {"model": LLAMA_3B, "method": "sft", "num_samples": 7473}),
    ("t4", {"model": LLAMA_3B, "method": "dpo", "effective_batch_size": 12}),
    ("h100", {"model": "Llama-3.1-8B", "method": "sft", "fixed": {"lora": None}}),
    ("12GiB", {"model": "gemma-2-2b-it", "method": "grpo"}),
    ("rtx4090", {"model": "Llama-3.1-8B-Instruct", "objective": "context"}),
    ("rtx3090", {"model": None, "num_samples": 1000}),
    ("rtx4060", {"model": None, "method": "sft", "objective": "model"}),
    ("6GiB", {"model": None, "method": "dpo", "objective": "cost"}),
]


@pytest.mark.parametrize(("gpu", "request_"), CASES)
def test_what_is_chosen_fits_at_high_keeps_the_rules_and_the_effective_batch(gpu: str, request_: dict[str, Any]) -> None:
    result = run(gpu, **request_)
    device = card(gpu)
    best = chosen(result)
    assert best.verdict.verdict == FITS and best.estimate.peak.high_bytes <= device.limit_bytes
    for candidate in shown(result):
        check_job(candidate.job)
        default = {"grpo": 64}.get(candidate.job.method, 16)
        assert candidate.job.effective_batch_size == request_.get("effective_batch_size", default)
        assert candidate.estimate == estimate_on(candidate.job, candidate.architecture, device)
        assert not set(candidate.job.offload) - {"checkpoints"}
    assert result.evaluated > 0 and result.binding
    assert all(rejection.reason and ": " in rejection.what for rejection in result.rejected)


@pytest.mark.parametrize(("gpu", "request_"), CASES)
def test_the_same_question_gets_the_same_answer(gpu: str, request_: dict[str, Any]) -> None:
    assert run(gpu, **request_) == run(gpu, **request_)


def test_nothing_in_the_space_that_fits_is_faster() -> None:
    """Brute force over the whole space of one model, no pruning: the search misses nothing by more than it calls equal."""
    device, architecture = card("rtx3080ti"), resolve_model(LLAMA_3B)
    best = chosen(run("rtx3080ti", model=LLAMA_3B))
    rates = _rates(device)
    fastest = float("inf")
    for quantization, adapter in (("none", "float32"), ("nf4-dq", "bfloat16")):
        for checkpointing, offload in ((False, ()), (True, ()), (True, ("checkpoints",))):
            for optim in ("adamw_torch_fused", "paged_adamw_8bit"):
                for batch in divisors(64):
                    for steps in divisors(64 // batch):
                        job = best.job.changed(
                            quantization=quantization,
                            lora=replace(best.job.lora, dtype=adapter) if best.job.lora else None,
                            gradient_checkpointing=checkpointing,
                            offload=offload,
                            optim=optim,
                            per_device_train_batch_size=batch,
                            gradient_accumulation_steps=64 // batch,
                            steps_per_generation=steps,
                        )
                        if batch * steps % 8 == 0 and need_of(job, architecture, device, Budget()).fits:
                            fastest = min(fastest, sum(phase_seconds(job, architecture, rates)))
    assert sum(phase_seconds(best.job, architecture, rates)) <= 1.0201 * fastest


def _rates(device: Device) -> Any:
    from llamamath.planner.throughput.roofline import rates_of

    found = rates_of(device)
    assert found is not None
    return found


FIXED: list[dict[str, Any]] = [
    {"lora.r": 64},
    {"lora.r": 4, "lora.lora_alpha": 4, "lora.lora_dropout": 0.1, "lora.target_modules": ["q_proj", "v_proj"]},
    {"quantization": "nf4"},
    {"quantization": "int8"},
    {"per_device_train_batch_size": 4},
    {"gradient_accumulation_steps": 4},
    {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 8, "num_generations": 6},
    {"steps_per_generation": 2},
    {"num_generations": 16},
    {"gradient_checkpointing": True, "attn_implementation": "eager"},
    {"optim": "adamw_8bit", "beta": 0.04},
    {"offload": ["checkpoints"]},
    {"max_prompt_length": 100, "max_completion_length": 300},
    {"max_completion_length": 200},
    {"num_iterations": 2},
    {"loss": "liger"},
]


@pytest.mark.parametrize("fixed", FIXED, ids=lambda fixed: ",".join(fixed))
def test_what_was_fixed_is_kept(fixed: dict[str, Any]) -> None:
    result = run("rtx3090", model="Llama-3.2-1B-Instruct", fixed=fixed, sources=dict.fromkeys(fixed, "flag"))
    for candidate in shown(result):
        for name, value in fixed.items():
            section, _, inner = name.partition(".")
            kept = getattr(candidate.job, section)
            assert (getattr(kept, inner) if inner else kept) == (tuple(value) if isinstance(value, list) else value)
            assert not any(rejection.what.startswith(f"{name}:") for rejection in result.rejected)
    assert all(result.sources[name] == "flag" for name in fixed)


def test_sources_say_where_every_shown_value_came_from() -> None:
    lengths = measure([300] * 90 + [700] * 10)
    result = run("rtx3090", model=LLAMA_3B, method="sft", fixed={"lora.r": 32}, sources={"lora.r": "recipe x"}, token_lengths=lengths)
    job = chosen(result).job
    assert job.max_length == 704
    assert result.sources["max_length"] == "data"
    assert result.sources["lora.r"] == "recipe x"
    assert result.sources["per_device_train_batch_size"] == result.sources["quantization"] == "chosen"
    assert result.sources["loss"] == "default" and result.sources["model"] == "given"
    assert run("rtx3090", method="sft").sources["model"] == "chosen"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"fixed": {"per_device_train_batch_size": 3}, "effective_batch_size": 64}, "per_device_train_batch_size"),
        ({"fixed": {"gradient_accumulation_steps": 5}, "effective_batch_size": 64}, "gradient_accumulation_steps"),
        ({"fixed": {"num_generations": 6}, "effective_batch_size": 64}, "num_generations"),
        (
            {"fixed": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}, "effective_batch_size": 64},
            "effective_batch_size",
        ),
        ({"effective_batch_size": 13}, "effective_batch_size"),
        ({"fixed": {"offload": ["weights"]}}, "offload"),
        ({"fixed": {"lora.r": 0}}, "lora.r"),
        ({"fixed": {"lora": None, "quantization": "nf4"}}, "lora"),
        ({"objective": "speed"}, "objective"),
        ({"method": "ppo"}, "method"),
        ({"fixed": {"per_device_train_batch_size": 0}}, "per_device_train_batch_size"),
        ({"fixed": {"gradient_accumulation_steps": "4"}}, "gradient_accumulation_steps"),
        ({"fixed": {"num_generations": True}}, "num_generations"),
        ({"fixed": {"max_completion_length": -5}}, "max_completion_length"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_train_epochs": 0}, "num_train_epochs"),
        ({"effective_batch_size": 0}, "effective_batch_size"),
    ],
)
def test_contradictions_name_the_field(request_: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        run("rtx3090", model=LLAMA_3B, **request_)
    assert caught.value.field == field


def test_bad_keys_and_values_are_refused() -> None:
    with pytest.raises(UnknownNameError):
        run("rtx3090", model=LLAMA_3B, fixed={"rank": 8})
    with pytest.raises(UsageError):
        run("rtx3090", model=LLAMA_3B, fixed={"lora": None, "lora.r": 8})
    with pytest.raises(FieldError):
        run("rtx3090", model=LLAMA_3B, fixed={"lora.target_modules": ["no_such_module"]})


# Devices


def test_cards_without_bfloat16_get_float16_with_float32_adapters() -> None:
    for gpu in ("t4", "rtx2060", "v100"):
        job = chosen(run(gpu, model=MATH_1_5B)).job
        assert job.dtype == "float16" and job.lora is not None and job.lora.dtype == "float32"
    with pytest.raises(FieldError, match="bfloat16 needs 8.0"):
        run("t4", model=MATH_1_5B, fixed={"dtype": "bfloat16"})
    with pytest.raises(FieldError, match="sdpa or eager"):
        run("t4", model=MATH_1_5B, fixed={"attn_implementation": "flash_attention_2"})
    assert chosen(run("t4", model=MATH_1_5B, fixed={"dtype": "float32"}, effective_batch_size=8)).job.dtype == "float32"


def test_a_device_of_unknown_rates_gets_a_job_and_no_time() -> None:
    result = run("12GiB", Budget(hours=1), model=LLAMA_3B, num_samples=1000)
    best = chosen(result)
    assert best.time is None and best.cost is None
    assert "RTX 3090" in result.ranked_by and any("rates are unknown" in note for note in result.notes)
    assert any("hours could not be checked" in note for note in result.notes)


def test_a_processor_is_judged_with_the_process_in_the_same_ram() -> None:
    device = Device(name="CPU", kind="cpu", total_bytes=16 * GIB, limit_bytes=16 * GIB, limit_basis="test", host_memory_bytes=16 * GIB)
    result = search(Request(model="Llama-3.2-1B-Instruct", method="sft"), device, Budget(), resolve_model)
    best = chosen(result)
    assert best.estimate.peak.high_bytes + best.estimate.host.peak_bytes <= 16 * GIB
    assert best.time is None and not best.job.offload and not best.job.optim.startswith("paged")
    tight = replace(device, limit_bytes=best.estimate.peak.high_bytes)
    assert verdict_on(best.estimate, tight, Budget()).verdict != FITS
    with pytest.raises(FieldError):
        search(Request(model=LLAMA_3B, fixed={"offload": ["checkpoints"]}), device, Budget(), resolve_model)


def test_attention_is_what_transformers_accepts_and_what_is_installed() -> None:
    assert chosen(run("rtx3090", model="gemma-2-2b-it", method="sft")).job.attn_implementation == "eager"
    flash = run("rtx3090", model=LLAMA_3B, method="sft", attentions=("sdpa", "flash_attention_2"))
    plain = run("rtx3090", model=LLAMA_3B, method="sft")
    assert chosen(flash).job.attn_implementation == "flash_attention_2"  # no mask: half the attention
    assert chosen(plain).job.attn_implementation == "sdpa"
    said = {rejection.what: rejection.reason for rejection in plain.rejected}
    assert "not installed" in said["attn_implementation: flash_attention_2"]
    old = run("t4", model=LLAMA_3B, method="sft", attentions=("sdpa", "flash_attention_2"))
    assert chosen(old).job.attn_implementation == "sdpa"


# Budgets


def test_vram_budget_is_kept() -> None:
    for gib in (4, 6, 9, 14, 20):
        result = run("rtx3090", Budget(vram_bytes=gib * GIB), model=LLAMA_3B)
        assert chosen(result).estimate.peak.high_bytes <= gib * GIB
        assert result.binding in (DEVICE_MEMORY, "nothing")


def test_ram_budget_keeps_offloading_out() -> None:
    request = Request(model="Llama-3.1-8B-Instruct", method="sft", objective="context")
    device = card("rtx3090")
    free = chosen(search(request, device, Budget(), resolve_model))
    assert free.job.offload == ("checkpoints",)
    for gib in (6, 9):
        result = search(request, device, Budget(ram_bytes=gib * GIB), resolve_model)
        best = chosen(result)
        assert best.estimate.host.peak_bytes <= gib * GIB and best.job.sequence_length < free.job.sequence_length


def test_too_little_ram_for_anything_is_said() -> None:
    result = run("rtx3090", Budget(ram_bytes=GIB), model=LLAMA_3B)
    assert result.chosen is None and result.binding == HOST_MEMORY and result.nearest is not None
    assert any("host memory short" in note for note in result.notes)


def test_hours_and_dollars_are_kept_at_their_high_end() -> None:
    whole = chosen(run("rtx3090", model=LLAMA_3B, num_samples=2000))
    assert whole.cost is not None and whole.cost.high_usd is not None
    for budget in (Budget(hours=whole.cost.high_hours / 1.5), Budget(cost_usd=whole.cost.high_usd / 1.5)):
        result = run("rtx3090", budget, model=LLAMA_3B, num_samples=2000)
        best = chosen(result)
        assert best.cost is not None and best.notes and not any("rank" in note for note in best.notes)
        assert best.cost.high_hours <= (budget.hours or 1e9) and (best.cost.high_usd or 0) <= (budget.cost_usd or 1e9)
        assert all(n.candidate.cost is None or n.candidate.cost.high_hours <= (budget.hours or 1e9) for n in result.neighbours)


def test_hours_that_cannot_be_kept() -> None:
    result = run("rtx3090", Budget(hours=0.01), model=LLAMA_3B, num_samples=7473)
    assert result.chosen is None and result.binding == HOURS
    assert result.nearest is not None and result.nearest.verdict.verdict == FITS
    assert run("rtx3090", Budget(cost_usd=0.001), model=LLAMA_3B, num_samples=7473).binding == COST
    auto = run("rtx3090", Budget(hours=0.01), num_samples=7473)
    assert auto.chosen is None and auto.binding == HOURS and len(auto.rejected) >= len(model_scores())


def test_disk_budget() -> None:
    needed = disk_bytes(chosen(run("rtx3090", model=LLAMA_3B)).job, resolve_model(LLAMA_3B))
    assert run("rtx3090", Budget(disk_bytes=needed), model=LLAMA_3B).chosen is not None
    short = run("rtx3090", Budget(disk_bytes=needed // 2), model=LLAMA_3B)
    assert short.chosen is None and short.binding == DISK
    small = chosen(run("rtx3090", Budget(disk_bytes=4 * GIB)))
    assert disk_bytes(small.job, small.architecture) <= 4 * GIB


# When nothing fits


def test_the_smallest_shortfall_and_the_knobs_are_shown() -> None:
    result = run("rtx3090", model="Llama-3.1-70B-Instruct")
    assert result.chosen is None and result.nearest is not None and not result.neighbours
    assert result.binding == DEVICE_MEMORY
    assert result.shortfall_bytes == result.nearest.estimate.peak.high_bytes - card("rtx3090").limit_bytes > 0
    assert {rejection.what for rejection in result.rejected} >= {"quantization: none", "quantization: nf4-dq"}
    assert all((rejection.shortfall_bytes or 0) >= result.shortfall_bytes for rejection in result.rejected)


def test_qualities_give_way_only_when_nothing_else_fits_and_never_if_fixed() -> None:
    """On a card that is a little too small for Llama-3.1-8B as it is, rank, lengths and group go down, one after the other."""
    roomy = chosen(run("9GiB", model="Llama-3.1-8B-Instruct"))
    assert roomy.job.lora is not None and roomy.job.lora.r == 16 and roomy.notes == ()
    least = _least_limit(roomy)
    lowered = search(Request(model="Llama-3.1-8B-Instruct"), _sized(least - 2**26), Budget(), resolve_model)
    best = chosen(lowered)
    assert best.notes and best.verdict.verdict == FITS
    fixed = {"lora.r": 16, "num_generations": 8, "max_prompt_length": 512, "max_completion_length": 1024}
    stubborn = search(Request(model="Llama-3.1-8B-Instruct", fixed=fixed), _sized(least - 2**26), Budget(), resolve_model)
    assert stubborn.chosen is None and stubborn.nearest is not None
    assert stubborn.nearest.job.sequence_length == 1536 and stubborn.nearest.job.num_generations == 8


def _sized(size_bytes: int) -> Device:
    return Device(name="card", kind="cuda", total_bytes=size_bytes, limit_bytes=size_bytes, limit_basis="test")


def _least_limit(candidate: Candidate) -> int:
    """The smallest device on which the request fits without concessions, within 16 MiB."""
    low, high = candidate.estimate.peak.high_bytes // 2, candidate.estimate.peak.high_bytes
    while high - low > 2**24:
        middle = (low + high) // 2
        found = search(Request(model=candidate.job.model), _sized(middle), Budget(), resolve_model).chosen
        if found is not None and not found.notes:
            high = middle
        else:
            low = middle
    return high


# Objectives


def test_context_reaches_what_the_model_or_the_memory_allows() -> None:
    short = chosen(run("rtx3090", model="Qwen2.5-Math-7B", method="sft", objective="context"))
    assert short.job.max_length == short.architecture.max_position_embeddings == 4096
    long = chosen(run("rtx3090", model="Llama-3.1-8B-Instruct", method="sft", objective="context"))
    assert 16_384 < (long.job.max_length or 0) < 131_072 and long.job.max_length is not None and long.job.max_length % 64 == 0
    grown = long.job.changed(max_length=long.job.max_length + 64)
    assert not need_of(grown, long.architecture, card("rtx3090"), Budget()).fits
    kept = chosen(run("rtx3090", model="Llama-3.1-8B-Instruct", method="sft", objective="context", fixed={"max_length": 2048}))
    assert kept.job.max_length == 2048
    prompt = chosen(run("rtx3090", model=LLAMA_3B, objective="context", fixed={"max_completion_length": 256}))
    assert prompt.job.max_completion_length == 256 and (prompt.job.max_prompt_length or 0) > 4096


def test_objective_model_takes_the_largest_and_cost_the_smallest() -> None:
    largest = chosen(run("rtx4090", method="sft", objective="model"))
    best = chosen(run("rtx4090", method="sft"))
    cheapest = chosen(run("rtx4090", method="sft", objective="cost"))
    parameters = [candidate.estimate.total_parameters for candidate in (cheapest, best, largest)]
    assert parameters == sorted(parameters) and parameters[0] < parameters[2]
    assert best.job.model == "Qwen/Qwen2.5-Math-7B-Instruct"


def test_auto_says_why_better_models_were_passed_over() -> None:
    result = run("rtx4060")
    order = [profile.id for profile in ranked_models("throughput")]
    passed = [rejection.what.removeprefix("model: ") for rejection in result.rejected if rejection.what.startswith("model: ")]
    assert chosen(result).job.model == order[len(passed)] and sorted(passed) == sorted(order[: len(passed)])


def test_auto_buys_time_by_shortening_before_it_takes_a_lesser_model() -> None:
    free = chosen(run("rtx3090", num_samples=2000))
    assert free.cost is not None
    less = chosen(run("rtx3090", Budget(hours=free.cost.high_hours * 0.6), num_samples=2000))
    assert less.job.model == free.job.model and less.notes


def test_auto_on_a_card_that_is_too_small_for_everything() -> None:
    result = run("300MiB", method="sft")
    assert result.chosen is None and result.nearest is not None and result.shortfall_bytes > 0


def test_auto_with_images_takes_a_vision_model() -> None:
    result = run("a100 80gb", fixed={"num_images": 1})
    assert chosen(result).architecture.vision is not None


# Models


def test_scores_have_sources_and_belong_to_profiles() -> None:
    assert len(model_scores()) >= 10
    for score in model_scores().values():
        assert score.model in model_names() and 0 < score.gsm8k < 100
        assert score.source and score.setting and score.checked and score.accessed.startswith("20")
        profile = find_model(score.model)
        assert profile is not None and profile.instruct


def test_smaller_models_stay_in_line() -> None:
    assert [profile.id for profile in smaller_models("Llama-3.1-8B-Instruct")] == [LLAMA_3B, "meta-llama/Llama-3.2-1B-Instruct"]
    assert smaller_models("nobody/knows") == () and smaller_models("Llama-3.2-1B") == ()
    profile = find_model("Llama-3.1-70B-Instruct")
    assert profile is not None
    sizes = [least_weight_bytes(profile, quantization, 2) for quantization in (None, "int8", "none")]
    assert sizes == [profile.parameters // 2, profile.parameters, 2 * profile.parameters]


# Recipes

STAGES = [(recipe, stage) for recipe in recipes() for stage in recipe.stages]


@pytest.mark.parametrize(("recipe", "stage"), STAGES, ids=lambda value: value.name)
@pytest.mark.parametrize("gpu", ["rtx3090", "a100 80gb"])
def test_every_recipe_is_planned_or_its_shortfall_reported(recipe: Recipe, stage: Stage, gpu: str) -> None:
    request = request_of_stage(stage, recipe=recipe.name)
    result = search(request, card(gpu), Budget(), resolve_model)
    best = result.chosen or result.nearest
    assert best is not None
    if result.chosen is None:
        assert result.shortfall_bytes > 0 and result.rejected
    for name in ("method", "quantization", "max_length", "max_prompt_length", "max_completion_length", "num_generations", "beta"):
        if name in stage.job:
            assert getattr(best.job, name) == stage.job[name]
    asked = stage.job["lora"]
    assert isinstance(asked, dict) and best.job.lora is not None and best.job.lora.r == asked["r"]
    batch, steps = stage.job["per_device_train_batch_size"], stage.job["gradient_accumulation_steps"]
    assert isinstance(batch, int) and isinstance(steps, int) and best.job.effective_batch_size == batch * steps
    assert request.num_samples == stage.num_samples


def test_every_recipe_fits_somewhere_but_the_90b() -> None:
    fitting = {
        recipe.name
        for recipe, stage in STAGES
        if search(request_of_stage(stage, recipe=recipe.name), card("a100 80gb"), Budget(), resolve_model).chosen is not None
    }
    assert {recipe.name for recipe, _ in STAGES} - fitting <= {"llama-math-90b", "llama-math-11b"}


def test_a_flag_beats_the_recipe() -> None:
    recipe, stage = next((recipe, stage) for recipe, stage in STAGES if recipe.name == "gsm8k-3b" and stage.name == "grpo")
    request = request_of_stage(stage, recipe=recipe.name, changed={"lora.r": 4, "num_generations": 4})
    assert request.fixed["lora.r"] == 4 and request.sources["lora.r"] == "flag" and request.sources["beta"] == "recipe gsm8k-3b"
    assert request.effective_batch_size is None
    full = request_of_stage(stage, recipe=recipe.name, changed={"lora": None, "quantization": "none"})
    assert "lora.r" not in full.fixed and full.fixed["lora"] is None


# Defaults


def test_defaults_of_an_open_request() -> None:
    architecture = resolve_model(LLAMA_3B)
    for method, batch in (("sft", 16), ("dpo", 16), ("grpo", 64)):
        first = start(Request(model=LLAMA_3B, method=method), architecture, card("rtx3090"))
        assert first.effective_batch_size == batch
        assert first.job.lora is not None and (first.job.lora.r, first.job.lora.lora_alpha) == (16, 32)
        assert first.job.sequence_length == (1536 if method == "grpo" else 1024)
    assert first.job.num_generations == 8
    assert start(Request(model=LLAMA_3B, effective_batch_size=12), architecture, card("rtx3090")).job.num_generations == 6
    odd = start(Request(model=LLAMA_3B, fixed={"num_generations": 6}), architecture, card("rtx3090"))
    assert odd.effective_batch_size % 6 == 0 and abs(odd.effective_batch_size - 64) <= 3


def test_lengths_stay_within_the_model() -> None:
    tiny: Architecture = replace(resolve_model(LLAMA_3B), max_position_embeddings=700)
    first = start(Request(method="grpo"), tiny, card("rtx3090")).job
    assert first.sequence_length <= 700
    assert start(Request(method="sft"), tiny, card("rtx3090")).job.max_length == 700
    noted = start(Request(method="sft", fixed={"max_length": 900}), tiny, card("rtx3090"))
    assert noted.job.max_length == 900 and "beyond" in noted.notes[0]
    both = start(Request(method="grpo", fixed={"max_prompt_length": 500, "max_completion_length": 500}), tiny, card("rtx3090"))
    assert both.job.sequence_length == 1000 and "beyond" in both.notes[0]


# Speed

_TIMED = """
import json, sys, time
began = time.process_time()
from llamamath.planner.search.engine import Request, search
from llamamath.planner.budget import Budget
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.probe.devices import device_for
imported = time.process_time() - began
model = None if sys.argv[1] == "auto" else sys.argv[1]
result = search(Request(model=model, num_samples=1000), device_for("rtx3090")[0], Budget(), resolve_model)
heavy = [name for name in ("torch", "numpy", "transformers", "yaml", "rich", "typer") if name in sys.modules]
print(json.dumps([imported, time.process_time() - began - imported, result.chosen is not None, heavy]))
"""


@pytest.mark.parametrize("model", [LLAMA_3B, "auto"])
def test_a_plan_from_a_cold_start_is_quick_and_imports_nothing_heavy(model: str) -> None:
    """Processor seconds of a fresh process, three tries: other work on the machine must not fail this."""
    best = float("inf")
    for _ in range(3):
        output = subprocess.run([sys.executable, "-c", _TIMED, model], capture_output=True, text=True, check=True).stdout
        imported, searched, found, heavy = json.loads(output)
        assert found and heavy == []
        best = min(best, imported + searched)
    assert best < 0.4


def test_device_limit_of_the_cards_used_here() -> None:
    assert device_limit(card("rtx3090"), Budget(vram_bytes=GIB)) == GIB


def job_of(result: SearchResult) -> Job:
    return chosen(result).job


def test_rtx_3090_with_a_3b_model_needs_no_offload_and_rolls_out_all_at_once() -> None:
    job = job_of(run("rtx3090", model=LLAMA_3B))
    assert job.offload == () and job.optim == "adamw_torch_fused"
    assert job.generation_batch_size == 64
