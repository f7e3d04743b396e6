"""Suggestions save what they say, are ranked by what they cost, and keep the rules."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from llamamath.planner.budget import Budget
from llamamath.planner.device import Device
from llamamath.planner.fit.changes import ANOTHER_MODEL, FREE, NOT_YET, PRECISION, changes, host_changes
from llamamath.planner.fit.fitting import need_of, not_runnable
from llamamath.planner.fit.suggestions import Suggestion, suggest
from llamamath.planner.job import Job
from llamamath.planner.job_files.job_file import check_job, parse_job
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.probe.devices import device_for

GIB = 2**30
GRPO: dict[str, Any] = {
    "method": "grpo",
    "max_prompt_length": 512,
    "max_completion_length": 1024,
    "num_generations": 8,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 16,
}
SFT: dict[str, Any] = {"method": "sft", "max_length": 2048}
BF16: dict[str, Any] = {"quantization": "none", "lora": {"r": 16, "dtype": "float32"}}

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("rtx4060", "Llama-3.2-3B-Instruct", GRPO),
    ("rtx4060", "Llama-3.2-3B-Instruct", GRPO | BF16 | {"gradient_checkpointing": False}),
    ("rtx3090", "Llama-3.1-8B", SFT | {"quantization": "none", "lora": None, "optim": "adamw_torch", "per_device_train_batch_size": 4}),
    ("rtx3090", "Llama-3.1-70B-Instruct", GRPO),
    ("rtx3080ti", "Qwen2.5-Math-7B-Instruct", SFT | {"max_length": 4096, "per_device_train_batch_size": 8, "loss": "full"}),
    ("t4", "Llama-3.1-8B", {"method": "dpo", "max_length": 8192, "per_device_train_batch_size": 4}),
    ("12GiB", "gemma-2-9b-it", SFT | {"kbit_preparation": True, "lora": {"r": 64, "lora_dropout": 0.1, "use_dora": True}}),
    ("6GiB", "Llama-3.2-1B", SFT | {"dtype": "float32", "quantization": "none", "lora": {"dtype": "float32"}, "max_length": 8192}),
    ("rtx4060", "Mistral-7B-v0.1", GRPO | {"per_device_eval_batch_size": 64, "beta": 0.04, "attn_implementation": "eager"}),
    ("rtx3090", "Llama-3.2-3B", GRPO | {"quantization": "none", "lora": None, "beta": 0.04}),
]


@cache
def card(name: str) -> Device:
    return device_for(name)[0]


def read(model: str, values: dict[str, Any]) -> Job:
    return parse_job({"model": model} | values)


def ask(gpu: str, model: str, values: dict[str, Any], limit: int = 6, budget: Budget | None = None) -> tuple[Suggestion, ...]:
    return suggest(read(model, values), resolve_model(model), card(gpu), budget or Budget(), limit=limit)


@pytest.mark.parametrize(("gpu", "model", "values"), CASES)
def test_each_saves_exactly_what_it_says(gpu: str, model: str, values: dict[str, Any]) -> None:
    job, architecture, device = read(model, values), resolve_model(model), card(gpu)
    before = need_of(job, architecture, device, Budget())
    found = suggest(job, architecture, device, Budget())
    assert 0 < len(found) <= 6 and len({item.job for item in found}) == len(found)
    for item in found:
        check_job(item.job)
        after = need_of(item.job, resolve_model(item.job.model), device, Budget())
        assert item.saves_bytes == before.device_bytes - after.device_bytes > 0
        assert item.fits == after.fits
        assert item.runnable == (not not_runnable(item.job))
        assert item.change and item.cost and item.job != job


@pytest.mark.parametrize(("gpu", "model", "values"), CASES)
def test_the_effective_batch_is_never_changed(gpu: str, model: str, values: dict[str, Any]) -> None:
    for item in ask(gpu, model, values):
        assert item.job.effective_batch_size == read(model, values).effective_batch_size


@pytest.mark.parametrize(("gpu", "model", "values"), CASES)
def test_what_cannot_be_run_comes_after_what_can(gpu: str, model: str, values: dict[str, Any]) -> None:
    found = ask(gpu, model, values, limit=20)
    singles = [item.runnable for item in found if " and " not in item.change]
    assert singles == sorted(singles, reverse=True)


def test_a_job_that_fits_needs_none() -> None:
    assert ask("rtx3090", "Llama-3.2-1B", SFT) == ()


def test_a_way_out_is_found_without_giving_up_what_is_trained() -> None:
    """bf16, no checkpointing, 8 GiB: no single cheap change suffices, four together do."""
    found = ask("rtx4060", "Llama-3.2-3B-Instruct", GRPO | BF16 | {"gradient_checkpointing": False})
    last = found[-1]
    assert last.fits and last.runnable and " and " in last.change
    assert last.job.sequence_length == 1536 and last.job.num_generations == 8 and last.job.lora is not None and last.job.lora.r == 16
    assert last.job.model == "Llama-3.2-3B-Instruct"
    assert not any(item.fits for item in found[:-1])


def test_a_combination_has_nothing_it_can_do_without() -> None:
    model, device = "Llama-3.2-3B-Instruct", card("rtx4060")
    before = read(model, GRPO | BF16 | {"gradient_checkpointing": False})
    last = suggest(before, resolve_model(model), device, Budget())[-1]
    for field in ("gradient_checkpointing", "quantization", "steps_per_generation"):
        undone = last.job.changed(**{field: getattr(before, field)})
        if undone != last.job:
            assert not need_of(undone, resolve_model(model), device, Budget()).fits


def test_the_limit_is_kept_and_takes_what_helps_most() -> None:
    whole, few = ask("rtx4060", "Llama-3.2-3B-Instruct", GRPO, limit=50), ask("rtx4060", "Llama-3.2-3B-Instruct", GRPO, limit=2)
    assert len(few) == 2 and all(item.fits for item in few) and {item.job for item in few} <= {item.job for item in whole}
    assert len(ask("rtx4060", "Llama-3.2-3B-Instruct", GRPO, limit=1)) == 1


def test_short_of_ram_it_is_ram_that_is_saved() -> None:
    values = SFT | {"max_length": 16_384, "offload": ["checkpoints"]}
    job, architecture, device = read("Llama-3.1-8B", values), resolve_model("Llama-3.1-8B"), card("rtx3090")
    budget = Budget(ram_bytes=5 * GIB)
    before = need_of(job, architecture, device, budget)
    assert before.shortfall_bytes <= 0 < (before.host_shortfall_bytes or 0)
    found = suggest(job, architecture, device, budget)
    assert found[0].change == "offload: []" and found[0].fits
    after = need_of(found[0].job, architecture, device, budget)
    assert found[0].saves_bytes == (before.host_shortfall_bytes or 0) - (after.host_shortfall_bytes or 0)


def test_a_smaller_model_of_the_same_line_is_offered() -> None:
    found = ask("rtx3090", "Llama-3.1-70B-Instruct", GRPO, limit=20)
    models = [item for item in found if item.change.startswith("model: ")]
    assert [item.job.model for item in models] == ["meta-llama/Llama-3.1-8B-Instruct"] and models[0].fits


def test_streaming_weights_is_marked_as_not_yet_runnable() -> None:
    found = ask("rtx3090", "Llama-3.1-70B-Instruct", GRPO, limit=20)
    streamed = [item for item in found if "weights" in item.job.offload]
    assert streamed and not any(item.runnable for item in streamed)
    assert all(item.job.use_reentrant for item in streamed)


def test_changes_are_ordered_by_what_they_give_up() -> None:
    job = read("Llama-3.1-8B", GRPO | BF16 | {"lora": {"r": 64, "lora_dropout": 0.1, "dtype": "float32"}, "gradient_checkpointing": False})
    listed = list(changes(job, resolve_model("Llama-3.1-8B"), card("rtx3090")))
    order = [change.gives_up for change in listed]
    assert order == sorted(order) and order[0] == FREE and order[-1] == NOT_YET and ANOTHER_MODEL not in order
    assert PRECISION in order
    assert {change.group for change in listed} >= {
        "dropout",
        "checkpointing",
        "batch",
        "rollout",
        "optim",
        "offload",
        "quantization",
        "rank",
    }


def test_changes_fit_the_device() -> None:
    job = read("Llama-3.2-1B", SFT)
    architecture = resolve_model("Llama-3.2-1B")
    old = [change.change for change in changes(job, architecture, card("t4"))]
    assert not any("flash" in change for change in old)
    cpu = Device(name="CPU", kind="cpu", total_bytes=GIB, limit_bytes=GIB, limit_basis="test")
    on_cpu = [change.change for change in changes(job, architecture, cpu)]
    assert not any("offload" in change or "paged" in change or "flash" in change for change in on_cpu)
    assert suggest(job, architecture, cpu, Budget())


def test_changes_of_ram() -> None:
    job = read("Llama-3.2-1B", SFT | {"optim": "paged_adamw_32bit", "offload": ["checkpoints"]})
    assert [change.change for change in host_changes(job)] == ["offload: []", "optim: adamw_torch_fused"]
    assert [change.job.optim for change in host_changes(job.changed(optim="paged_adamw_8bit", offload=()))] == ["adamw_8bit"]
    assert list(host_changes(read("Llama-3.2-1B", SFT))) == []
