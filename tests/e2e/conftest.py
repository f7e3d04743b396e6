"""How most end-to-end tests run the command: in this process. `command_line.process` gives it one of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Answer


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Answer]:
    """`llamamath ARGUMENTS` in this process, in an empty folder, 80 columns wide, without colour."""
    from llamamath.cli.main import run

    for name in ("NO_COLOR", "FORCE_COLOR", "LLAMAMATH_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)

    def called(*arguments: str) -> Answer:
        capsys.readouterr()
        code = run(arguments)
        printed = capsys.readouterr()
        return Answer(code, printed.out, printed.err)

    return called
