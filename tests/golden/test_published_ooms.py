"""What the project promises: no published run that ran out of memory is called a fit. Needs the shared data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamamath.planner.accuracy.run import accuracy_of, default_runs

RUNS = default_runs()


@pytest.mark.skipif(not RUNS.is_file(), reason=f"no published runs at {RUNS}; set LLAMAMATH_SHARED_DATA to the folder of shared data")
def test_no_run_that_ran_out_of_memory_is_called_a_fit(tmp_path: Path) -> None:
    lines = RUNS.read_text(encoding="utf-8").splitlines()
    failed = tmp_path / "ooms.jsonl"
    failed.write_text("\n".join(line for line in lines if json.loads(line).get("oom")), encoding="utf-8")
    verdicts = accuracy_of(failed).verdicts
    assert len(verdicts) >= 30
    assert [verdict.mapped.run.id for verdict in verdicts if verdict.predicted == "fits"] == []
