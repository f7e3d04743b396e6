"""The parent's side of the trace: starts the worker, reads its answer, keeps it. Imports no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llamamath.errors import LlamamathError, UnavailableError, shorten
from llamamath.planner.architecture import Architecture
from llamamath.planner.job import Job
from llamamath.planner.trace.cache import TraceCache, default_folder
from llamamath.planner.trace.request import TraceRequest, request_for
from llamamath.planner.trace.result import TraceResult, result_from_json
from llamamath.planner.trace.versions import TRACE_VERSION, check_versions, installed_versions

Progress = Callable[[str], None]
TIMEOUT_SECONDS = 900


class TraceFailedError(LlamamathError):
    """The worker stopped with an error: a library refused the job, or a canary died."""


def trace(
    job: Job,
    architecture: Architecture,
    *,
    capability: tuple[int, int] | None = None,
    cache_dir: Path | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> TraceResult:
    """Run the real step of `job` on fake tensors, in a subprocess, or read the cached result.

    capability: the card's compute capability, which decides between attention kernels (None: 8.0). cache_dir: None for the user's own.
    progress: called with the name of each phase as it begins. Raises UnavailableError (exit 3) without the libraries, UsageError for a
    job that cannot be traced, TraceFailedError where the worker failed.
    """
    request = request_for(job, architecture, capability=capability)
    versions = check_versions(installed_versions())
    cache = TraceCache((cache_dir or default_folder()) if use_cache else None)
    key = request.key(versions, TRACE_VERSION)
    found, note = cache.read(key, versions)
    if found is not None:
        return found
    result = run_worker(request, progress)
    trouble = cache.write(key, result)
    notes = tuple(text for text in (note, trouble) if text)
    return replace(result, notes=result.notes + notes)


def run_worker(request: TraceRequest, progress: Progress | None = None) -> TraceResult:
    """One trace in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="llamamath-trace-") as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-m", "llamamath.planner.trace.worker", str(path)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=_environment()
        )
        timer = threading.Timer(TIMEOUT_SECONDS, process.kill)
        timer.start()
        try:
            tail = _converse(process, request.to_json(), progress)
        except BaseException:  # Ctrl-C included: leave no worker behind
            process.kill()
            process.wait()
            raise
        finally:
            timer.cancel()
        return _answer(path, process.returncode, tail)


def _environment() -> dict[str, str]:
    """The parent's, with this package importable and no GPU: fake tensors need none, and its initialisation takes seconds."""
    root = str(Path(__file__).resolve().parents[3])
    found = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": root + (os.pathsep + found if found else ""), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def _converse(process: subprocess.Popen[str], request: str, progress: Progress | None) -> str:
    """Send the request, pass the progress on, and return the end of what the worker wrote to stderr."""
    assert process.stdin and process.stdout and process.stderr
    errors: list[str] = []
    reader = threading.Thread(target=lambda stream: errors.append(stream.read()), args=(process.stderr,), daemon=True)
    reader.start()
    try:
        process.stdin.write(request)
        process.stdin.close()
    except BrokenPipeError:
        pass  # it died while starting: its stderr says why
    last = ""
    for line in process.stdout:
        phase = line.strip()
        if phase != last and progress is not None:
            progress(phase)
        last = phase
    process.wait()
    reader.join(timeout=5)
    return "".join(errors)[-2000:]


def _answer(path: Path, code: int, tail: str) -> TraceResult:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if code == 0 and text:
        return result_from_json(text)
    try:
        error = json.loads(text)
    except ValueError:
        error = {}
    reason = error.get("error") if isinstance(error, dict) else None
    if reason is None:
        lines = [line for line in tail.splitlines() if line.strip()]
        reason = f"the worker ended with status {code}" + (f": {lines[-1]}" if lines else "")
        if code in (-9, 137):
            raise UnavailableError(f"the trace was stopped: {reason}", "it needs up to 4 GB of memory and some minutes")
        if lines and lines[-1].startswith(("ModuleNotFoundError", "ImportError", "OSError")):
            raise UnavailableError(
                f"the trace cannot start: {shorten(lines[-1], 300)}", "reinstall the train extra: pip install 'llamamath[train]'"
            )
    failure = TraceFailedError(f"the trace failed: {shorten(str(reason), 600)}", "the formula still works; please report the job file")
    failure.detail = error.get("detail", tail) if isinstance(error, dict) else tail  # type: ignore[attr-defined]
    raise failure
