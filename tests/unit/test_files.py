"""`write_atomically`: the old text or the new, never half, and nothing left beside it."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from llamamath.errors import UnavailableError, UsageError
from llamamath.files import write_atomically


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_atomically(path, "a: ü\n")
    write_atomically(str(path), "b: 2\n")
    assert path.read_bytes() == b"b: 2\n"
    assert list(tmp_path.iterdir()) == [path]


def test_line_ends_are_kept_as_given(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x", "a\r\nb\n")
    assert (tmp_path / "x").read_bytes() == b"a\r\nb\n"


def test_permission_bits_survive(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(0o600)
    write_atomically(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    write_atomically(link, "new")
    assert link.is_symlink() and real.read_text() == "new"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, refuse)
    with pytest.raises(UnavailableError, match="No space left on device"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "x", "new")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "absent" / "x", tmp_path / "file" / "x"):
        with pytest.raises(UsageError, match="cannot write"):
            write_atomically(path, "new")
    with pytest.raises(UsageError, match="Unicode"):
        write_atomically(tmp_path / "x", "\udc80")


def test_an_impossible_name_is_refused_in_words(tmp_path: Path) -> None:
    for name in ("a\0b", "x" * 5000):
        with pytest.raises((UsageError, UnavailableError), match="cannot write"):
            write_atomically(tmp_path / name, "new")


@pytest.mark.skipif(sys.platform == "win32", reason="no such device there")
def test_a_device_is_written_to_not_replaced() -> None:
    write_atomically("/dev/null", "new")
    assert not Path("/dev/null").is_file()
