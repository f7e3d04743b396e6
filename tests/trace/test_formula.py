"""The formula against the trace on seeded random jobs: every difference is a term that one of them has and the other has not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="traces many jobs by forking")
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.formula_against_trace import compare, error_of  # noqa: E402

COUNT = 30


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    """Jobs 0 to 29, models cut to 4 or 6 layers of their real widths."""
    return compare(list(range(COUNT)), (4, 6))


def test_every_job_is_traced(rows: list[dict[str, object]]) -> None:
    assert [row["error"] for row in rows if "error" in row] == []


def test_peaks_agree(rows: list[dict[str, object]]) -> None:
    errors = [error_of(row) for row in rows]
    assert sum(map(abs, errors)) / COUNT <= 0.01
    assert max(map(abs, errors)) <= 0.03


def test_peak_phases_agree(rows: list[dict[str, object]]) -> None:
    assert sum(row["trace_phase"] == row["formula_phase"] for row in rows) >= 0.9 * COUNT
