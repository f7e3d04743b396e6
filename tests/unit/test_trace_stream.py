"""The pure parts of the trace: streams, accounting, requests, results, versions. No torch."""

from __future__ import annotations

import subprocess
import sys
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from llamamath.errors import UnavailableError, UsageError
from llamamath.planner.estimate import COMPONENTS, Estimate
from llamamath.planner.job import Job, Lora
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.trace.accounting import live_tensors, worst_instants
from llamamath.planner.trace.replaying import events_of, replayed
from llamamath.planner.trace.request import TraceRequest, model_config, request_for, why_not
from llamamath.planner.trace.result import TraceResult, cublas_workspaces, result_from_json, result_to_json
from llamamath.planner.trace.stream import Label, Mark, Stream, rounded
from llamamath.planner.trace.timeline import columns_of, timeline_html
from llamamath.planner.trace.versions import SUPPORTED, check_versions

JOB = Job(model="meta-llama/Llama-3.2-1B", method="sft", max_length=512)
VERSIONS = {name: f"{numbers[0]}.0" for name, numbers in SUPPORTED.items()}
MIB = 2**20


def _label(component: str, shape: str = "(4,) float32") -> Label:
    return Label(component=component, operation="empty", where="file.py:function:1", shape=shape)


def _stream() -> Stream:
    """Weights of 1000 bytes, an activation of 600, a gradient of 2 MiB; the activation goes in backward."""
    return Stream(
        entries=array("q", [1000, 600, 2 * MIB, -2, -3]),
        marks=(
            Mark(position=0, phase="load"),
            Mark(position=1, phase="between"),
            Mark(position=1, phase="forward"),
            Mark(position=2, phase="backward", detail="late"),
            Mark(position=5, phase="save"),
        ),
        labels=(_label("base_weights"), _label("activation"), _label("gradient")),
        label_of=array("i", [0, 1, 2]),
    )


def _result() -> TraceResult:
    stream = _stream()
    return TraceResult(
        stream=stream,
        instants=worst_instants(stream),
        unseen=(cublas_workspaces((8, 0)),),
        versions=VERSIONS,
        trainable_parameters=10,
        total_parameters=100,
        notes=("a note",),
    )


def test_sizes_are_rounded_as_the_allocator_does() -> None:
    assert [rounded(size) for size in (1, 512, 513, 1024)] == [512, 512, 1024, 1024]


def test_worst_instants_by_component() -> None:
    found = {instant.phase: instant for instant in worst_instants(_stream())}
    assert list(found) == ["load", "forward", "backward", "save"]
    assert found["load"].allocated_bytes == 1024
    assert found["forward"].components["activation"] == 1024
    assert found["backward"].allocated_bytes == 2048 + 2 * MIB
    assert found["backward"].detail == "late"
    assert found["save"].allocated_bytes == 1024
    for instant in found.values():
        assert sum(instant.components.values()) == instant.allocated_bytes
        assert set(instant.components) == set(COMPONENTS)


def test_live_tensors_at_an_instant() -> None:
    assert live_tensors(_stream(), 2) == [(1, 1000), (2, 600), (3, 2 * MIB)]
    assert live_tensors(_stream(), 4) == [(1, 1000)]


def test_a_result_survives_json() -> None:
    result = _result()
    again = result_from_json(result_to_json(result))
    assert again == result
    assert again.allocated_bytes == 2048 + 2 * MIB + 2 * 8_519_680


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"trace_version": 0}', result_to_json(_result())[:-20], "null", "[" * 100_000])
def test_a_damaged_result_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        result_from_json(text)


def test_a_result_whose_columns_do_not_fit_is_refused() -> None:
    short = replace(_result(), stream=replace(_stream(), label_of=array("i", [0, 1])), instants=())
    with pytest.raises(ValueError, match="columns"):
        result_from_json(result_to_json(short))


def test_a_request_survives_json_and_its_key_names_everything() -> None:
    architecture = resolve_model(JOB.model)
    request = request_for(JOB, architecture)
    assert TraceRequest.from_json(request.to_json()) == request
    keys = {
        request.key(VERSIONS, 1),
        request.key(VERSIONS, 2),
        request.key(VERSIONS | {"torch": "2.13.1"}, 1),
        request_for(JOB.changed(max_length=513), architecture).key(VERSIONS, 1),
        request_for(JOB, replace(architecture, num_hidden_layers=15)).key(VERSIONS, 1),
        request_for(JOB, architecture, capability=(7, 5)).key(VERSIONS, 1),
    }
    assert len(keys) == 6


def test_what_cannot_be_traced_is_said() -> None:
    architecture = resolve_model(JOB.model)
    assert why_not(JOB, architecture) is None
    with pytest.raises(UsageError, match="offload"):
        request_for(JOB.changed(offload=("weights",)), architecture)
    with pytest.raises(UsageError, match="Liger"):
        request_for(JOB.changed(stack="transformers-5", loss="liger"), architecture)


@pytest.mark.parametrize(
    "name", ["meta-llama/Llama-3.2-1B", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-0.6B", "google/gemma-2-2b", "meta-llama/Llama-3.2-11B-Vision"]
)
def test_configurations_carry_the_architecture(name: str) -> None:
    architecture = resolve_model(name)
    config = model_config(architecture)
    text = config.get("text_config", config)
    assert text["hidden_size"] == architecture.hidden_size
    assert text["num_hidden_layers"] == architecture.num_hidden_layers
    assert config["model_type"] == architecture.family


def test_gemma2_runs_eagerly_where_sdpa_is_refused() -> None:
    architecture = resolve_model("google/gemma-2-2b")
    assert request_for(JOB.changed(model="google/gemma-2-2b"), architecture).attention == "eager"


def test_missing_and_other_versions_exit_3() -> None:
    assert check_versions(dict(VERSIONS)) == VERSIONS
    with pytest.raises(UnavailableError, match="torch, trl") as missing:
        check_versions(VERSIONS | {"torch": None, "trl": None})
    assert missing.value.exit_code == 3
    assert "llamamath[train]" in missing.value.hint
    with pytest.raises(UnavailableError, match=r"torch 2\.99\.0"):
        check_versions(VERSIONS | {"torch": "2.99.0"})


def test_replay_counts_the_workspaces() -> None:
    replay = replayed(_result(), expandable=True)
    assert replay.peak_allocated_bytes == 2048 + 2 * MIB + 2 * 8_519_680
    assert replay.fits


def test_the_cache_grows_token_by_token_between_prefill_and_end() -> None:
    shape = "(2, 4, {}, 8) bfloat16"
    size = 2 * 4 * 8 * 2
    stream = Stream(
        entries=array("q", [size * 16, -1, size * 20, -2]),
        marks=(Mark(position=0, phase="generate"), Mark(position=2, phase="fill"), Mark(position=3, phase="generate")),
        labels=(_label("kv_cache", shape.format(16)), _label("kv_cache", shape.format(20))),
        label_of=array("i", [0, 1]),
    )
    events = list(events_of(stream))
    grown = [event.size_bytes for event in events if event.label == "kv_cache/growth"]
    assert grown == [size * tokens for tokens in range(16, 20)]
    freed = {event.id for event in events if event.kind == "free"}
    assert freed == {event.id for event in events if event.kind == "alloc"}


def test_the_timeline_is_one_page_without_outside_resources() -> None:
    page = timeline_html(_result(), JOB, resolve_model(JOB.model))
    assert page.startswith("<!doctype html>") and 'id="peak"' in page and "<svg" in page
    for outside in ("http://", "https://", "src=", "@import", "url("):
        assert outside not in page
    assert max(total for _, total, _ in columns_of(_stream())) == 2048 + 2 * MIB


def test_an_estimate_from_a_trace() -> None:
    from llamamath.planner.device import Device
    from llamamath.planner.trace.estimating import to_estimate

    device = Device(name="x", kind="cuda", total_bytes=2**34, limit_bytes=2**34, limit_basis="test", context_bytes=100)
    found = to_estimate(_result(), JOB.changed(lora=Lora()), resolve_model(JOB.model), device)
    assert isinstance(found, Estimate)
    assert found.basis == "trace"
    assert found.peak.phase == "backward"
    assert found.peak.low_bytes <= found.peak.device_bytes <= found.peak.high_bytes
    assert found.peak.device_bytes == found.peak.reserved_bytes + 100
    assert any("cuBLAS" in reason for reason in found.reasons)


def test_the_parent_side_imports_no_torch() -> None:
    code = (
        "import sys; import llamamath.planner.trace, llamamath.cli.trace, llamamath.planner.trace.timeline;"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
