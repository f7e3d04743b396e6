"""The first table of the report: what was aimed at, and what was reached."""

from __future__ import annotations

from collections.abc import Callable

from llamamath.planner.accuracy.compare import MISS, Accuracy, Comparison, summarise
from llamamath.planner.accuracy.markdown import percent, signed, table

Chooses = Callable[[Comparison], bool]


def is_fms_dense(comparison: Comparison) -> bool:
    """fms-acceleration's dense single-GPU rows, max allocated, every batch of the stated length."""
    mapped = comparison.mapped
    return mapped.software == "fms-acceleration" and mapped.measure == "allocated" and mapped.length_kind == "exact"


def is_complete(comparison: Comparison) -> bool:
    """The length of the worst batch is known: every batch has it, or the longest reaches it."""
    return comparison.mapped.length_kind != "bound"


def _other(comparison: Comparison) -> bool:
    return is_complete(comparison) and not is_fms_dense(comparison)


_SETS: tuple[tuple[str, str, Chooses], ...] = (
    ("fms-acceleration, dense, one GPU, max allocated", "1.5 % mean, 4 % worst", is_fms_dense),
    (
        "everything else with a complete configuration (length exact or reached)",
        f"10 % mean, each miss over {percent(MISS)} explained",
        _other,
    ),
    ("- of these, max allocated", "", lambda c: _other(c) and c.mapped.measure == "allocated"),
    ("- of these, nvidia-smi or max reserved, lengths exact", "", lambda c: _other(c) and _held(c) and c.mapped.length_kind == "exact"),
    ("- of these, nvidia-smi or max reserved, lengths varying", "", lambda c: _other(c) and _held(c) and c.mapped.length_kind != "exact"),
    ("length only bounded (an upper bound, so misses are expected)", "", lambda c: not is_complete(c)),
)


def _held(comparison: Comparison) -> bool:
    return comparison.mapped.measure != "allocated"


def headline(accuracy: Accuracy) -> str:
    """Mean, worst and share under-predicted of each set, beside its aim."""
    rows = []
    for name, aim, chooses in _SETS:
        summary = summarise([comparison for comparison in accuracy.comparisons if chooses(comparison)])
        if summary is not None:
            worst = f"{signed(summary.worst_error)} ({summary.worst_id})"
            figures = [percent(summary.mean_error, 1), percent(summary.median_error, 1), worst]
            rows.append([name, str(summary.rows), aim, *figures, percent(summary.share_under), percent(summary.share_missed)])
    misses = accuracy.misses
    explained = sum(bool(comparison.reasons) for comparison in misses)
    header = ["rows of", "number", "aim", "mean abs.", "median", "worst", "under-predicted", f"misses > {percent(MISS)}"]
    text = (
        f"For {explained} of the {len(misses)} misses over {percent(MISS)} a difference in that direction is known between the run and "
        "what is modelled; its size is not. They are listed under [Misses](#misses-over-15-). What other tools reach is under "
        "[Beside other tools](#beside-other-tools)."
    )
    return f"## Aimed at and reached\n\n{table(header, rows)}\n\n{text}" if rows else ""
