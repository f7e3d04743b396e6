"""Every patch has a canary: take the patch away, and the trace stops with a name instead of giving other bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="takes patches away in forks")
FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What the trace said without each patch."""
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}
    command = [sys.executable, str(FOLDER / "canary_deaths.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=True)
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    return found


def test_all_pass_with_every_patch(said: dict[str, str]) -> None:
    assert said["nothing"] == "passed 16"


def test_each_patch_is_missed(said: dict[str, str]) -> None:
    without = {name: text for name, text in said.items() if name != "nothing"}
    assert len(without) >= 13
    for name, text in without.items():
        assert text.startswith("DeadCanaryError: check_") or (name == "answer_cpu_to_autograd" and text == "crashed"), (name, text)
