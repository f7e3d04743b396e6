"""The largest that fits: it does, the next does not, and the matrix says the same as its cells one by one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from llamamath.errors import FieldError
from llamamath.planner.architecture import Architecture
from llamamath.planner.budget import Budget
from llamamath.planner.device import Device
from llamamath.planner.fit.fitting import context_of, disk_bytes, estimate_on, need_of, not_runnable, shortfall_bytes, verdict_on
from llamamath.planner.fit.limits import MATRIX_GRANULARITY, bisect, for_device, largest, matrix, scale_of, template_job
from llamamath.planner.job import Job
from llamamath.planner.job_files.job_file import check_job
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.probe.devices import device_for

GIB = 2**30
LLAMA_1B, LLAMA_3B, LLAMA_8B = (resolve_model(name) for name in ("Llama-3.2-1B", "Llama-3.2-3B", "Llama-3.1-8B"))


@cache
def card(name: str) -> Device:
    return device_for(name)[0]


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("last", [3, 4, 17, 1000])
def test_bisection_finds_the_edge(first: int, last: int) -> None:
    for edge in range(first - 1, last + 3):
        asked = []

        def fits(number: int, edge: int = edge, asked: list[int] = asked) -> bool:
            asked.append(number)
            return number <= edge

        assert bisect(first, last, fits) == min(edge, last)
        assert len(asked) <= 2 * last.bit_length() + 2 and all(first <= number <= last for number in asked)


JOBS: list[tuple[str, dict[str, Any]]] = [
    ("grpo", {}),
    ("grpo", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}),
    ("grpo", {"steps_per_generation": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}),
    ("sft", {}),
    ("sft", {"offload": ["checkpoints"]}),
    ("dpo", {"per_device_train_batch_size": 2}),
]


@pytest.mark.parametrize(("method", "fixed"), JOBS)
@pytest.mark.parametrize("what", ["context", "batch", "group"])
@pytest.mark.parametrize("gpu", ["rtx4060", "t4"])
def test_the_largest_fits_and_the_next_does_not(method: str, fixed: dict[str, Any], what: str, gpu: str) -> None:
    job = template_job(method, fixed)
    if what == "group" and method != "grpo":
        with pytest.raises(FieldError):
            largest(what, job, LLAMA_3B, card(gpu))
        return
    found = largest(what, job, LLAMA_3B, card(gpu))
    assert found.value > 0 and found.job is not None and found.estimate is not None
    check_job(found.job)
    assert found.estimate == estimate_on(found.job, LLAMA_3B, card(gpu))
    assert need_of(found.job, LLAMA_3B, card(gpu), Budget()).fits
    measured = {
        "context": found.job.sequence_length,
        "batch": found.job.per_device_train_batch_size,
        "group": found.job.num_generations,
    }
    assert measured[what] == found.value
    assert found.next_value is not None and found.next_value > found.value
    assert found.next_value_fails_by_bytes is not None and found.next_value_fails_by_bytes > 0 and found.capped_by is None


def test_nothing_fits_and_the_model_ends() -> None:
    none = largest("context", template_job("sft"), LLAMA_8B, card("rtx4060"), Budget(vram_bytes=GIB))
    assert none.value == 0 and none.job is None and none.estimate is None
    assert none.next_value == 1 and (none.next_value_fails_by_bytes or 0) > 0
    short = replace(LLAMA_1B, max_position_embeddings=3000)
    capped = largest("context", template_job("sft"), short, card("rtx4060"))
    assert capped.value == 3000 and capped.capped_by == "max_position_embeddings" and capped.next_value is None
    assert capped.next_value_fails_by_bytes is None


def test_ram_counts_where_the_job_uses_it() -> None:
    job = template_job("sft", {"offload": ["checkpoints"]})
    free = largest("context", job, LLAMA_3B, card("rtx4060"))
    tight = largest("context", job, LLAMA_3B, card("rtx4060"), Budget(ram_bytes=5 * GIB))
    assert 0 < tight.value < free.value
    assert tight.job is not None and estimate_on(tight.job, LLAMA_3B, card("rtx4060")).host.peak_bytes <= 5 * GIB


def test_groups_grow_in_steps_that_trl_accepts() -> None:
    for batch in (1, 2, 3, 4):
        job = template_job("grpo", {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 8})
        scale = scale_of("group", job, LLAMA_3B)
        for number in range(scale.first, scale.first + 5):
            check_job(scale.job_at(number * scale.step))
    with pytest.raises(FieldError, match="context, batch, group"):
        scale_of("rank", template_job("sft"), LLAMA_3B)


def test_the_matrix_says_what_its_cells_say_alone() -> None:
    devices = [card(name) for name in ("rtx4060", "t4", "rtx3090", "12GiB")]
    models: list[tuple[str, Architecture]] = [("Llama-3.2-1B", LLAMA_1B), ("Llama-3.1-8B", LLAMA_8B)]
    template = template_job("grpo")
    rows = matrix(models, devices, template)
    assert [row.model for row in rows] == ["Llama-3.2-1B", "Llama-3.1-8B"]
    for row, (name, architecture) in zip(rows, models, strict=True):
        assert row.job == template.changed(model=name)
        for cell, device in zip(row.cells, devices, strict=True):
            job = for_device(row.job, device)
            alone = largest("context", job, architecture, device, granularity=MATRIX_GRANULARITY)
            assert (cell.device, cell.largest_context) == (device.name, alone.value)
            assert cell.context_is_capped == (alone.capped_by is not None)
            assert cell.largest_group == largest("group", job, architecture, device).value
            assert cell.shortfall_bytes == shortfall_bytes(job, architecture, device, Budget())
            assert cell.fits == (cell.shortfall_bytes <= 0)


def test_the_matrix_of_sft_has_no_groups_and_knows_processors() -> None:
    cpu = Device(name="CPU", kind="cpu", total_bytes=12 * GIB, limit_bytes=12 * GIB, limit_basis="test")
    (row,) = matrix([("Llama-3.2-1B", LLAMA_1B)], [cpu, card("rtx4060")], template_job("sft"), Budget(vram_bytes=6 * GIB))
    assert [cell.largest_group for cell in row.cells] == [None, None]
    assert all(cell.largest_context > 1024 and cell.fits for cell in row.cells)
    alone = largest("context", row.job, LLAMA_1B, cpu, Budget(vram_bytes=6 * GIB), granularity=MATRIX_GRANULARITY)
    assert row.cells[0].largest_context == alone.value


def test_templates() -> None:
    assert template_job("grpo").sequence_length == 1536 and template_job("dpo").beta == 0.1
    assert template_job("sft", {"max_length": 77}).max_length == 77
    old = for_device(template_job("sft"), card("t4"))
    assert old.dtype == "float16" and old.lora is not None and old.lora.dtype == "float32"
    assert for_device(template_job("sft"), card("rtx3090")) == template_job("sft")
    assert for_device(Job(model="m", method="sft", max_length=8, lora=None, quantization="none"), card("t4")).lora is None


# What a job takes (fitting.py)


def test_a_processor_has_no_context_and_shares_its_ram_with_the_process() -> None:
    cpu = Device(name="CPU", kind="cpu", total_bytes=8 * GIB, limit_bytes=8 * GIB, limit_basis="test", host_memory_bytes=8 * GIB)
    job = template_job("sft")
    assert context_of(cpu) == 0 and context_of(card("rtx3090")) is None and context_of(replace(cpu, context_bytes=5)) == 5
    found = estimate_on(job, LLAMA_1B, cpu)
    verdict = verdict_on(found, cpu, Budget())
    assert verdict.limit_bytes == 8 * GIB - found.host.peak_bytes
    need = need_of(job, LLAMA_1B, cpu, Budget())
    assert need.shortfall_bytes == found.peak.high_bytes + found.host.peak_bytes - 8 * GIB == shortfall_bytes(job, LLAMA_1B, cpu, Budget())
    assert need.host_shortfall_bytes is None and need.worst_bytes == need.shortfall_bytes
    less = verdict_on(found, cpu, Budget(ram_bytes=4 * GIB))
    assert less.limit_bytes == 4 * GIB - found.host.peak_bytes


def test_need_is_what_the_verdict_says() -> None:
    job, device = template_job("grpo"), card("rtx4060")
    found = estimate_on(job, LLAMA_8B, device)
    need = need_of(job, LLAMA_8B, device, Budget(ram_bytes=64 * GIB))
    assert need.shortfall_bytes == -verdict_on(found, device, Budget()).headroom_bytes == shortfall_bytes(job, LLAMA_8B, device, Budget())
    assert need.host_shortfall_bytes == found.host.peak_bytes - 64 * GIB and not need.fits
    assert need.worst_bytes == need.shortfall_bytes


def test_disk_and_what_cannot_be_run() -> None:
    job = template_job("sft")
    assert disk_bytes(job, LLAMA_1B) > 2 * 1_235_814_400
    assert not_runnable(job) == ()
    assert not_runnable(job.changed(offload=("checkpoints", "weights"), fused_kernels=True)) == ("offload: weights", "fused_kernels: true")
