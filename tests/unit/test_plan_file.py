"""plan.yaml: what is written is read back, what makes no sense is refused by name, and a plan that no longer holds is not run."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamath.errors import DoesNotFitError, FieldError, LlamamathError, UnknownNameError, UsageError
from llamamath.planner.budget import Budget
from llamamath.planner.device import Device
from llamamath.planner.estimate import PHASES
from llamamath.planner.job import Job, Lora
from llamamath.planner.job_files.job_file import parse_job
from llamamath.planner.job_files.yaml_json import parse_yaml
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.plan.plan import (
    Plan,
    PlannedDevice,
    PlannedMemory,
    PlannedRun,
    PlannedTime,
    changed_versions,
    check_plan,
    dump_plan,
    installed_versions,
    load_plan,
    make_plan,
    parse_plan,
    plan_to_dict,
    write_plan,
)
from llamamath.planner.probe.devices import device_for
from llamamath.planner.search.engine import Rejection, Request, SearchResult, search

LLAMA_3B = "meta-llama/Llama-3.2-3B-Instruct"
ARCHITECTURE = resolve_model(LLAMA_3B)
BUDGET = Budget(hours=40.0)
REQUEST = Request(model=LLAMA_3B, num_samples=1000, fixed={"lora.r": 32}, sources={"lora.r": "flag"})


@cache
def card(name: str) -> Device:
    return device_for(name)[0]


@cache
def result() -> SearchResult:
    return search(REQUEST, card("rtx3090"), BUDGET, resolve_model)


@cache
def planned() -> Plan:
    return make_plan(REQUEST, result(), card("rtx3090"), BUDGET, recipe="gsm8k-3b", stage="grpo", created="2026-11-21")


def read(text: str) -> Plan:
    return parse_plan(parse_yaml(text, "plan.yaml"), source="plan.yaml")


# Writing and reading


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(planned(), path)
    assert load_plan(path) == planned()
    as_json = tmp_path / "plan.json"
    as_json.write_text(json.dumps(plan_to_dict(planned())), encoding="utf-8")
    assert load_plan(as_json) == planned()


def test_the_job_section_is_a_job_file() -> None:
    data = parse_yaml(dump_plan(planned()), "plan.yaml")
    assert isinstance(data, dict)
    assert parse_job(data["job"]) == planned().job


def test_a_plan_holds_what_was_found() -> None:
    plan, chosen = planned(), result().chosen
    assert chosen is not None and chosen.time is not None and chosen.cost is not None
    assert plan.job == chosen.job and plan.memory.high_bytes == chosen.estimate.peak.high_bytes
    assert plan.time is not None and plan.time.expected_hours == chosen.cost.expected_hours and plan.time.num_steps == 125
    assert plan.device.compute_capability == "8.6" and plan.device.limit_bytes == chosen.verdict.limit_bytes
    assert plan.run == PlannedRun(recipe="gsm8k-3b", stage="grpo", num_samples=1000)
    assert plan.sources["lora.r"] == "flag" and plan.rejected == result().rejected and plan.binding == result().binding
    assert plan.versions == installed_versions() and plan.versions["llamamath"]


def test_the_file_can_be_read_by_people() -> None:
    text = dump_plan(planned())
    assert "high_bytes: " in text and " GiB" in text and "num_train_epochs: 1.0" in text
    assert all(len(line) < 400 for line in text.splitlines())
    assert read(text + "\n\n# a remark\n") == planned()


def test_no_plan_of_a_search_that_found_nothing() -> None:
    nothing = search(REQUEST, card("rtx3090"), Budget(vram_bytes=2**30), resolve_model)
    with pytest.raises(DoesNotFitError):
        make_plan(REQUEST, nothing, card("rtx3090"), Budget())


def test_unknown_time_and_price_are_null() -> None:
    request = Request(model=LLAMA_3B, method="sft")
    unknown = make_plan(request, search(request, card("12GiB"), Budget(), resolve_model), card("12GiB"), Budget())
    assert unknown.time is None and unknown.device.compute_capability is None and read(dump_plan(unknown)) == unknown
    unpriced = make_plan(request, search(request, card("rtx4060"), Budget(), resolve_model), card("rtx4060"), Budget())
    assert unpriced.time is not None and unpriced.time.num_steps is None and read(dump_plan(unpriced)) == unpriced


# Edited

EDITS: list[tuple[str, str, str]] = [
    ("  per_device_train_batch_size: 2 ", "  per_device_train_batch_size: 0 ", "per_device_train_batch_size"),
    ("  num_generations: 8 ", "  num_generations: 7 ", "num_generations"),
    ("quantization: none", "quantization: nf5", "quantization"),
    ("  dtype: bfloat16", "  dtype: bf16", "dtype"),
    ("  phase: forward", "  phase: dancing", "memory.phase"),
    ("  basis: formula", "  basis: feeling", "memory.basis"),
    ("  num_samples: 1000", "  num_samples: -3", "run.num_samples"),
    ("  num_samples: 1000", "  num_samples: many", "run.num_samples"),
    ("  num_train_epochs: 1.0", "  num_train_epochs: 0", "run.num_train_epochs"),
    ("  kind: cuda", "  kind: tpu", "device.kind"),
    ("  hours: 40.0", "  hours: soon", "budget.hours"),
    ("  num_steps: 125", "  num_steps: 0.5", "time.num_steps"),
    ("created: 2026-11-21", "created: yesterday", "created"),
    ("schema_version: 1", "schema_version: 2", "schema_version"),
    ("schema_version: 1", "schema_version: true", "schema_version"),
    ("notes: []", "notes: {a: 1}", "notes"),
    ("notes: []", "notes: [3]", "notes"),
    ("  torch:", "  '':", "versions"),
    ("sources:", "sources: [1]\nx:", "key"),
    ("  host_pinned_bytes: 0 ", "  host_pinned_bytes: 99999999999 ", "memory.host_pinned_bytes"),
]


@pytest.mark.parametrize(("before", "after", "field"), EDITS, ids=lambda text: text.strip()[:30])
def test_nonsense_is_refused_by_name(before: str, after: str, field: str) -> None:
    text = dump_plan(planned())
    assert before in text
    with pytest.raises(UsageError) as caught:
        read(text.replace(before, after, 1))
    assert caught.value.message.startswith("plan.yaml: ")
    if isinstance(caught.value, FieldError):
        assert caught.value.field.endswith(field)
    else:
        assert field in caught.value.message


@pytest.mark.parametrize("name", ["allocated_bytes", "reserved_bytes", "device_bytes", "low_bytes"])
def test_an_estimate_out_of_order_is_refused(name: str) -> None:
    broken = replace(planned(), memory=replace(planned().memory, **{name: 10**12}))
    with pytest.raises(FieldError, match=f"memory.{name}"):
        read(dump_plan(broken))


def test_times_out_of_order_are_refused() -> None:
    time = planned().time
    assert time is not None
    for changes, field in (
        ({"expected_seconds_per_step": 1e9}, "expected_seconds_per_step"),
        ({"expected_hours": 1e9}, "expected_hours"),
    ):
        with pytest.raises(FieldError, match=field):
            read(dump_plan(replace(planned(), time=replace(time, **changes))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "section",
    [
        "created",
        "job",
        "run",
        "memory",
        "device",
        "binding",
        "schema_version",
        "time",
        "budget",
        "sources",
        "rejected",
        "versions",
        "notes",
    ],
)
def test_missing_sections(section: str) -> None:
    data = plan_to_dict(planned())
    del data[section]
    if section in ("time", "budget", "sources", "rejected", "versions", "notes"):
        assert parse_plan(data).job == planned().job
        return
    with pytest.raises(FieldError, match=section):
        parse_plan(data)


def test_unknown_keys_name_the_closest() -> None:
    text = dump_plan(planned())
    for before, after, closest in (
        ("memory:", "memorry:", "memory"),
        ("  low_bytes:", "  lowbytes:", "memory.low_bytes"),
        ("  max_prompt_length:", "  max_promt_length:", "max_prompt_length"),
    ):
        with pytest.raises(UnknownNameError) as caught:
            read(text.replace(before, after, 1))
        assert closest in caught.value.closest


@pytest.mark.parametrize(
    "text", ["", "3", "[1, 2]", "job: 3", "model: x\nmethod: sft", "job: {model: x}", "schema_version: 1", "job: null"]
)
def test_other_files_are_not_plans(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError):
        load_plan(path)


def test_too_many_rejections_are_refused() -> None:
    data = plan_to_dict(planned())
    data["rejected"] = [{"what": "a: b", "reason": "c", "shortfall_bytes": None}] * 1000
    with pytest.raises(FieldError, match="rejected"):
        parse_plan(data)
    data["rejected"] = ["a"]
    with pytest.raises(FieldError, match=r"rejected\[0\]"):
        parse_plan(data)


# Checked again


def test_a_plan_that_holds_returns_its_estimate() -> None:
    found = check_plan(planned(), card("rtx3090"), ARCHITECTURE)
    assert found.peak.high_bytes == planned().memory.high_bytes


def test_a_plan_that_no_longer_holds_says_by_how_much() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        check_plan(planned(), card("rtx4060"), ARCHITECTURE)
    assert "short" in caught.value.message and "RTX 4060" in caught.value.message and "RTX 3090" in caught.value.message
    with pytest.raises(DoesNotFitError, match="may use 2.00 GiB"):
        check_plan(planned(), replace(card("rtx3090"), host_memory_bytes=2**31), ARCHITECTURE)
    with pytest.raises(DoesNotFitError):
        check_plan(planned(), card("rtx3090"), ARCHITECTURE, Budget(vram_bytes=2**30))


def test_an_edited_job_is_estimated_as_it_stands() -> None:
    longer = replace(planned(), job=planned().job.changed(max_completion_length=8192))
    with pytest.raises(DoesNotFitError, match="the estimate itself has changed"):
        check_plan(longer, card("rtx3090"), ARCHITECTURE)
    streamed = replace(planned(), job=planned().job.changed(offload=("weights",)))
    with pytest.raises(FieldError, match="offload"):
        check_plan(streamed, card("rtx3090"), ARCHITECTURE)


def test_changed_versions_are_named() -> None:
    assert changed_versions(planned()) == ()
    older = replace(planned(), versions={**planned().versions, "llamamath": "0.0.1", "gone": "1"})
    assert changed_versions(older) == (f"llamamath 0.0.1 -> {installed_versions()['llamamath']}", "gone 1 -> absent")


# Any plan

_WRITTEN = st.characters(categories=("L", "N", "P", "S"), include_characters=" ")
_TEXT = st.text(_WRITTEN, min_size=1, max_size=40).map(str.strip).filter(bool)
_SIZE = st.integers(0, 2**60)
_HOURS = st.none() | st.floats(0, 1e12)


def _memory(draw: Any) -> PlannedMemory:
    allocated, reserved, device, high = sorted(draw(st.tuples(_SIZE, _SIZE, _SIZE, _SIZE)))
    pinned, peak = sorted(draw(st.tuples(_SIZE, _SIZE)))
    return PlannedMemory(
        phase=draw(st.sampled_from(PHASES)),
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        device_bytes=device,
        low_bytes=draw(st.integers(0, device)),
        high_bytes=high,
        host_peak_bytes=peak,
        host_pinned_bytes=pinned,
        trainable_parameters=draw(st.integers(0, 10**9)),
        total_parameters=draw(st.integers(10**9, 2**50)),
        basis=draw(st.sampled_from(["formula", "trace", "measured"])),
    )


def _time(draw: Any) -> PlannedTime:
    low, expected, high = sorted(draw(st.tuples(*[st.floats(0, 1e15)] * 3)))
    hours = sorted(draw(st.tuples(*[st.floats(0, 1e12)] * 3))) if draw(st.booleans()) else [None] * 3
    return PlannedTime(
        low_seconds_per_step=low,
        expected_seconds_per_step=expected,
        high_seconds_per_step=high,
        num_steps=draw(st.none() | st.integers(1, 2**50)),
        low_hours=hours[0],
        expected_hours=hours[1],
        high_hours=hours[2],
        low_usd=draw(_HOURS),
        high_usd=draw(_HOURS),
        basis=draw(_TEXT),
    )


@st.composite
def plans(draw: Any) -> Plan:
    """Any plan with printable words and sizes in order."""
    job = Job(
        model=draw(_TEXT),
        method="sft",
        max_length=draw(st.integers(1, 2**24)),
        lora=Lora(r=draw(st.integers(1, 65_536)), lora_dropout=draw(st.floats(0, 0.99)), target_modules=("q_proj",)),
        offload=draw(st.sampled_from([(), ("checkpoints",)])),
    )
    rejected = st.builds(Rejection, what=_TEXT, reason=_TEXT, shortfall_bytes=st.none() | _SIZE)
    words = st.dictionaries(_TEXT, _TEXT, max_size=5)
    return Plan(
        job=job,
        run=PlannedRun(
            recipe=draw(st.none() | _TEXT),
            stage=draw(st.none() | _TEXT),
            num_samples=draw(st.none() | st.integers(1, 2**50)),
            num_train_epochs=draw(st.floats(0.001, 1000)),
        ),
        memory=_memory(draw),
        time=_time(draw) if draw(st.booleans()) else None,
        device=PlannedDevice(
            name=draw(_TEXT),
            kind=draw(st.sampled_from(["cuda", "cpu"])),
            total_bytes=draw(_SIZE),
            limit_bytes=draw(_SIZE),
            limit_basis=draw(_TEXT),
            compute_capability=draw(st.none() | _TEXT),
        ),
        budget=Budget(
            vram_bytes=draw(st.none() | _SIZE),
            ram_bytes=draw(st.none() | _SIZE),
            disk_bytes=draw(st.none() | _SIZE),
            hours=draw(_HOURS),
            cost_usd=draw(_HOURS),
        ),
        binding=draw(_TEXT),
        notes=tuple(draw(st.lists(_TEXT, max_size=3))),
        sources=draw(words),
        rejected=tuple(draw(st.lists(rejected, max_size=3))),
        versions=draw(words),
        created=draw(st.dates(datetime.date(2000, 1, 1), datetime.date(2099, 12, 31))).isoformat(),
    )


@settings(max_examples=40, deadline=None)
@given(plans())
def test_any_plan_survives_yaml_and_json(plan: Plan) -> None:
    assert read(dump_plan(plan)) == plan
    assert parse_plan(json.loads(json.dumps(plan_to_dict(plan)))) == plan


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["job", "run", "memory", "time", "device", "created", "schema_version", "x"]), inner, max_size=6
            )
        ),
        max_leaves=12,
    )
)
def test_anything_else_is_an_error_of_ours(data: object) -> None:
    with pytest.raises(LlamamathError):
        parse_plan(data)
