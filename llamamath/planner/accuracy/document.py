"""An Accuracy as one JSON document: bytes and shares, every row."""

from __future__ import annotations

from llamamath.planner.accuracy.compare import Accuracy, Comparison, Summary
from llamamath.planner.accuracy.jobs import GROUPS


def to_json(accuracy: Accuracy) -> dict[str, object]:
    """The same as one JSON document: bytes and shares, every row."""
    return {
        "schema_version": 1,
        "total": accuracy.total,
        "malformed": accuracy.malformed,
        "compared": len(accuracy.comparisons),
        "groups": {group: _summary_json(summary) | {"description": GROUPS[group]} for group, summary in accuracy.groups.items()},
        "rows": [_row_json(comparison) for comparison in accuracy.comparisons],
        "verdicts": [
            {
                "id": verdict.mapped.run.id,
                "group": verdict.mapped.group,
                "happened": verdict.happened,
                "predicted": verdict.predicted,
                "right": verdict.right,
                "device_bytes": verdict.estimate.peak.device_bytes,
                "high_bytes": verdict.estimate.peak.high_bytes,
                "capacity_bytes": verdict.capacity_bytes,
            }
            for verdict in accuracy.verdicts
        ],
        "excluded": [{"id": row.run.id, "reason": row.reason, "detail": row.detail} for row in accuracy.excluded],
    }


def _summary_json(summary: Summary) -> dict[str, object]:
    return {
        "rows": summary.rows,
        "mean_error": summary.mean_error,
        "median_error": summary.median_error,
        "mean_signed_error": summary.mean_signed_error,
        "worst_error": summary.worst_error,
        "worst_id": summary.worst_id,
        "share_under": summary.share_under,
        "share_above_high": summary.share_above_high,
        "share_missed": summary.share_missed,
    }


def _row_json(comparison: Comparison) -> dict[str, object]:
    mapped, peak = comparison.mapped, comparison.estimate.peak
    return {
        "id": mapped.run.id,
        "model": mapped.model,
        "group": mapped.group,
        "software": mapped.software,
        "measure": mapped.measure,
        "length": mapped.length_kind,
        "measured_bytes": comparison.measured_bytes,
        "predicted_bytes": comparison.predicted_bytes,
        "error": comparison.error,
        "phase": peak.phase,
        "low_bytes": peak.low_bytes,
        "high_bytes": peak.high_bytes,
        "nvidia_smi_bytes": mapped.run.nvidia_smi_bytes,
        "basis": comparison.estimate.basis,
        "caveats": list(comparison.caveats),
        "explained_by": list(comparison.reasons) if comparison.is_miss else [],
    }
