"""The trace against published A100 peaks and the reference values of facts.md section 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamamath.planner.accuracy.jobs import MappedRun, row_to_job
from llamamath.planner.accuracy.rows import read_runs
from llamamath.planner.job import Job, Lora
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.trace.batch import trace_many
from llamamath.planner.trace.replaying import replayed
from llamamath.planner.trace.request import TraceRequest, request_for, why_not
from llamamath.units import MIB

pytest.importorskip("trl")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="traces many jobs by forking")

RUNS = Path(os.environ.get("LLAMAMATH_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"), "memory", "published_runs.jsonl")


def _fms_runs() -> dict[str, MappedRun]:
    """Single-GPU rows of fms-acceleration that were measured and whose software the trace can run: no fused kernels."""
    if not RUNS.is_file():
        return {}
    found = {}
    for run in read_runs(RUNS).runs:
        if not run.id.startswith("fms-") or run.measured_bytes is None:
            continue
        mapped = row_to_job(run, resolve_model)
        if isinstance(mapped, MappedRun) and why_not(mapped.job, mapped.architecture) is None:
            found[run.id] = mapped
    return found


os.environ.setdefault("HF_HUB_OFFLINE", "1")
FMS = _fms_runs()


@pytest.fixture(scope="module")
def traced() -> dict[str, int]:
    """`max_memory_allocated` of every published row, replayed with torch's default allocator."""
    requests = [request_for(mapped.job, mapped.architecture) for mapped in FMS.values()]
    peaks = {}
    for name, result in zip(FMS, trace_many(requests), strict=True):
        assert not isinstance(result, str), (name, result)
        replay = replayed(result, expandable=False)
        peaks[name] = max(phase.peak_allocated_bytes for phase in replay.phases if phase.name not in ("load", "start", "build", "between"))
    return peaks


@pytest.mark.skipif(not FMS, reason=f"no published runs at {RUNS}")
def test_published_rows_are_found() -> None:
    assert len(FMS) >= 7


@pytest.mark.skipif(not FMS, reason=f"no published runs at {RUNS}")
@pytest.mark.parametrize("name", FMS)
def test_published_peak(traced: dict[str, int], name: str) -> None:
    measured = FMS[name].measured_bytes
    assert measured is not None
    assert traced[name] == pytest.approx(measured, rel=0.001)


_NF4 = Job(
    model="meta-llama/Llama-3.2-1B",
    method="grpo",
    quantization="nf4-dq",
    lora=Lora(r=16),
    per_device_train_batch_size=4,
    max_prompt_length=256,
    max_completion_length=768,
    num_generations=4,
)
REFERENCES = {
    "checkpointing": (_NF4, 1832),
    "no checkpointing": (_NF4.changed(gradient_checkpointing=False), 8050),
    "no checkpointing, packed": (_NF4.changed(gradient_checkpointing=False, padding=False), 7538),
    "batch 8": (_NF4.changed(per_device_train_batch_size=8), 2662),
    "reentrant": (_NF4.changed(use_reentrant=True), 1849),
    "prepared for k-bit training": (_NF4.changed(kbit_preparation=True), 3005),
}
"""facts.md section 2, MiB: allocated by the forward and backward of the first step, when no optimizer state exists yet."""


@pytest.fixture(scope="module")
def references() -> dict[str, int]:
    """Bytes of each reference, without optimizer state and what the trace does not see."""
    requests: list[TraceRequest] = [request_for(job, resolve_model(job.model)) for job, _ in REFERENCES.values()]
    found = {}
    for name, result in zip(REFERENCES, trace_many(requests), strict=True):
        assert not isinstance(result, str), (name, result)
        step = [instant for instant in result.instants if instant.phase in ("forward", "backward")]
        found[name] = max(instant.allocated_bytes - instant.components["optimizer"] for instant in step)
    return found


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_values(references: dict[str, int], name: str) -> None:
    assert references[name] / MIB == pytest.approx(REFERENCES[name][1], rel=0.01)
