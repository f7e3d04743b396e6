"""Running `llamamath` in a process of its own, and what one command line answered."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = ("PATH", "HOME", "TMPDIR", "SYSTEMROOT", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Answer:
    """How one command line ended and what it printed."""

    code: int
    out: str
    err: str


def environment(**changes: str) -> dict[str, str]:
    """A clean environment: nothing of the caller's that changes what is printed, no hub, no GPU."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    offline = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUTF8": "1"}
    return kept | offline | changes


def process(*arguments: str, stdin: str = "", cwd: Path | None = None, **changes: str) -> Answer:
    """`llamamath ARGUMENTS` in a process of its own, its output in pipes."""
    command = [sys.executable, "-W", "error", "-m", "llamamath", *arguments]
    done = subprocess.run(
        command, input=stdin, capture_output=True, encoding="utf-8", env=environment(**changes), cwd=cwd, timeout=120, check=False
    )
    return Answer(done.returncode, done.stdout, done.stderr)
