"""The trace against the real step on the CPU: the same trainer code, real tensors, every allocation recorded by torch.profiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cpu_comparison import CASES

pytest.importorskip("torch")
pytest.importorskip("trl")

FOLDER = Path(__file__).parent
TOLERANCE = 0.001
"""Of the peak. Most configurations agree to the byte; what is left are tensors of a few bytes that CPU kernels keep."""


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, object]]:
    """Every configuration, real and traced, in one process of its own (tracing patches torch)."""
    command = [sys.executable, str(FOLDER / "cpu_comparison.py")]
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


def test_covers_the_methods_and_at_least_three_families() -> None:
    assert len(CASES) >= 24
    assert {method for _, method, _ in CASES.values()} == {"sft", "dpo", "grpo"}
    assert len({model for model, _, _ in CASES.values()}) >= 3


@pytest.mark.parametrize("name", CASES)
def test_peak_of_the_real_step(measured: dict[str, dict[str, object]], name: str) -> None:
    line = measured[name]
    assert "error" not in line, line
    real, traced = line["real"], line["traced"]
    assert isinstance(real, dict) and isinstance(traced, dict)
    assert max(traced.values()) == pytest.approx(max(real.values()), rel=TOLERANCE)
    assert max(traced, key=lambda phase: traced[phase]) == max(real, key=lambda phase: real[phase])
    for phase in real:
        assert traced[phase] == pytest.approx(real[phase], rel=0.002), phase
