"""The cache of traces, and the client's answers to a worker that fails. No torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_trace_stream import JOB, VERSIONS, _result

from llamamath.errors import UnavailableError
from llamamath.planner.model_files.config_file import resolve_model
from llamamath.planner.trace import client
from llamamath.planner.trace.cache import TraceCache, default_folder
from llamamath.planner.trace.client import TraceFailedError, _answer, trace


def test_what_is_written_is_read(tmp_path: Path) -> None:
    cache = TraceCache(tmp_path / "new" / "folder")
    assert cache.read("key", VERSIONS) == (None, "")
    assert cache.write("key", _result()) == ""
    found, note = cache.read("key", VERSIONS)
    assert found is not None and found.from_cache and found.instants == _result().instants and note == ""


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b'{"trace_version": 999}', b"null"])
def test_a_damaged_file_is_rebuilt_with_a_note(tmp_path: Path, damage: bytes) -> None:
    cache = TraceCache(tmp_path)
    (tmp_path / "key.json").write_bytes(damage)
    found, note = cache.read("key", VERSIONS)
    assert found is None and "made again" in note


def test_other_versions_are_rebuilt_with_a_note(tmp_path: Path) -> None:
    cache = TraceCache(tmp_path)
    cache.write("key", _result())
    found, note = cache.read("key", VERSIONS | {"torch": "2.13.9"})
    assert found is None and "other library versions" in note


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "could not be cached" in TraceCache(tmp_path / "file").write("key", _result())


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMAMATH_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "traces"
    monkeypatch.delenv("LLAMAMATH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "llamamath" / "traces"


def test_trace_uses_the_cache_and_says_what_it_rebuilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = []
    monkeypatch.setattr(client, "installed_versions", lambda: dict(VERSIONS))
    monkeypatch.setattr(client, "run_worker", lambda request, progress: runs.append(request) or _result())
    architecture = resolve_model(JOB.model)
    first = trace(JOB, architecture, cache_dir=tmp_path)
    second = trace(JOB, architecture, cache_dir=tmp_path)
    assert len(runs) == 1 and not first.from_cache and second.from_cache
    next(tmp_path.glob("*.json")).write_text("{")
    third = trace(JOB, architecture, cache_dir=tmp_path)
    assert len(runs) == 2 and any("made again" in note for note in third.notes)
    trace(JOB, architecture, use_cache=False)
    assert len(runs) == 3


def test_without_the_libraries_there_is_a_line_on_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "installed_versions", lambda: dict.fromkeys(VERSIONS))
    with pytest.raises(UnavailableError) as error:
        trace(JOB, resolve_model(JOB.model))
    assert error.value.exit_code == 3 and "pip install" in error.value.hint


def test_a_worker_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"error": "DeadCanaryError: check_x", "detail": "..."}')
    with pytest.raises(TraceFailedError, match="check_x"):
        _answer(path, 1, "")
    os.unlink(path)
    with pytest.raises(UnavailableError, match="ModuleNotFoundError"):
        _answer(path, 1, "Traceback\nModuleNotFoundError: No module named 'torch'\n")
    with pytest.raises(UnavailableError, match="memory|stopped"):
        _answer(path, -9, "")
    with pytest.raises(TraceFailedError, match="status 7"):
        _answer(path, 7, "")
