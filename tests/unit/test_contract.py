"""The JSON documents: design.md's keys and nesting exactly, and errors that carry what a reader needs."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from llamamath.errors import DoesNotFitError, FieldError, UnavailableError, UnknownNameError
from llamamath.planner.budget import Budget
from llamamath.planner.contract import error_document, fit_document
from llamamath.planner.estimate import COMPONENTS, PHASES
from llamamath.planner.fit.fitting import estimate_on, verdict_on
from llamamath.planner.fit.suggestions import suggest
from llamamath.planner.job_files.job_file import parse_job
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.probe.devices import device_for

DESIGN = {
    "schema_version": int,
    "verdict": str,
    "peak": {
        "phase": str,
        "allocated_bytes": int,
        "reserved_bytes": int,
        "device_bytes": int,
        "low_bytes": int,
        "high_bytes": int,
    },
    "phases": dict,
    "host": {"peak_bytes": int, "pinned_bytes": int},
    "trainable_parameters": int,
    "basis": str,
    "limit_bytes": int,
    "headroom_bytes": int,
    "suggestions": list,
}
"""design.md, "The job file": every key of the document with the type of its value."""
PHASE_KEYS = [*(f"{component}_bytes" for component in COMPONENTS), "total_bytes"]


def document(size: str = "8GiB", **values: object) -> dict[str, object]:
    job = parse_job({"model": "llama-3.2-1b", "method": "sft", "max_length": 1024, **values})
    architecture, device, budget = resolve_model(job.model), device_for(size)[0], Budget()
    estimate = estimate_on(job, architecture, device)
    return fit_document(job, estimate, verdict_on(estimate, device, budget), suggest(job, architecture, device, budget))


def check(found: dict[str, object], wanted: dict[str, object]) -> None:
    for key, kind in wanted.items():
        if isinstance(kind, dict):
            inner = found[key]
            assert isinstance(inner, dict) and list(inner) == list(kind)
            check(inner, kind)
        else:
            assert type(found[key]) is kind, key


def test_the_document_is_designs() -> None:
    for found in (
        document(),
        document("1GiB"),
        document(method="grpo", max_prompt_length=64, max_completion_length=64, num_generations=2, per_device_train_batch_size=2),
    ):
        assert list(found)[: len(DESIGN)] == list(DESIGN)
        check(found, DESIGN)
        assert found["schema_version"] == 1 and found["basis"] in ("formula", "trace", "measured")
        phases = found["phases"]
        assert isinstance(phases, dict) and list(phases) == [name for name in PHASES if name in phases]
        for phase in phases.values():
            assert list(phase) == PHASE_KEYS
            assert all(type(size) is int and size >= 0 for size in phase.values())
            assert sum(phase.values()) == 2 * phase["total_bytes"]


def test_verdict_peak_and_headroom_agree() -> None:
    for size, verdict in (("8GiB", "fits"), ("1GiB", "does_not_fit")):
        found = document(size)
        peak, phases = found["peak"], found["phases"]
        assert isinstance(peak, dict) and isinstance(phases, dict)
        assert found["verdict"] == verdict
        assert peak["allocated_bytes"] == phases[peak["phase"]]["total_bytes"] == max(phase["total_bytes"] for phase in phases.values())
        assert peak["low_bytes"] <= peak["device_bytes"] <= peak["high_bytes"]
        assert found["headroom_bytes"] == found["limit_bytes"] - peak["high_bytes"]  # type: ignore[operator]


def test_suggestions_say_what_to_set() -> None:
    suggestions = document("1500MiB", per_device_train_batch_size=4)["suggestions"]
    assert isinstance(suggestions, list) and suggestions
    for suggestion in suggestions:
        assert list(suggestion)[:2] == ["change", "saves_bytes"]
        assert suggestion["saves_bytes"] > 0 and suggestion["set"] and type(suggestion["fits"]) is bool
        changed = parse_job(
            {"model": "llama-3.2-1b", "method": "sft", "max_length": 1024, "per_device_train_batch_size": 4} | suggestion["set"]
        )
        assert changed.method == "sft"
    assert document("8GiB")["suggestions"] == []


@given(batch=st.integers(1, 64), length=st.integers(1, 32_768), size=st.integers(1, 200))
def test_any_document_is_json(batch: int, length: int, size: int) -> None:
    found = document(f"{size}GiB", per_device_train_batch_size=batch, max_length=length)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_errors_carry_what_a_reader_needs() -> None:
    field = error_document(FieldError("lora.r", -1, "from 1", ["1"], "write 1"), line=7)["error"]
    assert isinstance(field, dict)
    assert (
        field["field"] == "lora.r"
        and field["closest"] == ["1"]
        and field["line"] == 7
        and field["exit_code"] == 2
        and field["hint"] == "write 1"
    )
    name = error_document(UnknownNameError("GPU", "rtx3099", ["RTX 3090"]))["error"]
    assert isinstance(name, dict) and name["kind"] == "GPU" and name["closest"] == ["RTX 3090"] and "line" not in name
    codes = [error_document(error("x"))["error"]["exit_code"] for error in (DoesNotFitError, UnavailableError)]  # type: ignore[index]
    assert codes == [1, 3]
