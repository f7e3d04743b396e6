"""The JSON documents of design.md: what `--json` prints. Key names and nesting are a contract; keys may be added, none renamed.

Sizes are bytes, so a reader never has to know what a GB is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamamath.errors import FieldError, LlamamathError, UnknownNameError
from llamamath.planner.budget import Verdict
from llamamath.planner.estimate import COMPONENTS, Estimate, PhaseMemory
from llamamath.planner.job import Job
from llamamath.planner.job_files.job_text import job_to_dict

if TYPE_CHECKING:
    from llamamath.planner.device import Device
    from llamamath.planner.fit.suggestions import Suggestion

SCHEMA_VERSION = 1


def fit_document(job: Job, estimate: Estimate, verdict: Verdict, suggestions: Sequence[Suggestion] = ()) -> dict[str, object]:
    """design.md's document for one job; `binding`, `total_parameters`, `instants`, `reasons`, `notes` and `job` are added keys."""
    peak = estimate.peak
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict.verdict,
        "peak": {
            "phase": peak.phase,
            "allocated_bytes": peak.allocated_bytes,
            "reserved_bytes": peak.reserved_bytes,
            "device_bytes": peak.device_bytes,
            "low_bytes": peak.low_bytes,
            "high_bytes": peak.high_bytes,
        },
        "phases": {phase.name: phase_document(phase) for phase in estimate.phases},
        "host": {"peak_bytes": estimate.host.peak_bytes, "pinned_bytes": estimate.host.pinned_bytes},
        "trainable_parameters": estimate.trainable_parameters,
        "basis": estimate.basis,
        "limit_bytes": verdict.limit_bytes,
        "headroom_bytes": verdict.headroom_bytes,
        "suggestions": [suggestion_document(suggestion, job) for suggestion in suggestions],
        "binding": verdict.binding,
        "total_parameters": estimate.total_parameters,
        "instants": {phase.name: phase.instant for phase in estimate.phases},
        "reasons": list(estimate.reasons),
        "notes": list(estimate.notes),
        "job": job_to_dict(job),
    }


def phase_document(phase: PhaseMemory) -> dict[str, int]:
    """Bytes by component at the worst instant of a phase, and their sum."""
    return {f"{name}_bytes": phase.component(name) for name in COMPONENTS} | {"total_bytes": phase.total_bytes}


def suggestion_document(suggestion: Suggestion, job: Job) -> dict[str, object]:
    """One change: in words, what it saves, and as the job-file keys to set (`set`)."""
    before, after = job_to_dict(job), job_to_dict(suggestion.job)
    return {
        "change": suggestion.change,
        "saves_bytes": suggestion.saves_bytes,
        "fits": suggestion.fits,
        "runnable": suggestion.runnable,
        "cost": suggestion.cost,
        "set": {name: value for name, value in after.items() if value != before[name]},
    }


def device_document(device: Device) -> dict[str, object]:
    """What a job was judged against."""
    return {
        "name": device.name,
        "kind": device.kind,
        "total_bytes": device.total_bytes,
        "limit_bytes": device.limit_bytes,
        "limit_basis": device.limit_basis,
        "host_memory_bytes": device.host_memory_bytes,
        "notes": list(device.notes),
    }


def error_document(error: LlamamathError, *, line: int | None = None) -> dict[str, object]:
    """What stands in place of a result: `{"schema_version": 1, "error": {...}}`. line: of a file of jobs, from 1."""
    described: dict[str, object] = {
        "type": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    if isinstance(error, FieldError):
        described |= {"field": error.field, "allowed": error.allowed, "closest": list(error.closest)}
    if isinstance(error, UnknownNameError):
        described |= {"kind": error.kind, "name": error.name, "closest": list(error.closest)}
    if line is not None:
        described["line"] = line
    return {"schema_version": SCHEMA_VERSION, "error": described}
