"""Traces kept on disk: one file per request under its versions. A file that cannot be used is rebuilt, and a note says so."""

from __future__ import annotations

import os
from pathlib import Path

from llamamath.errors import LlamamathError
from llamamath.files import write_atomically
from llamamath.planner.trace.result import TraceResult, result_from_json, result_to_json

MAX_FILE_BYTES = 256 * 2**20
"""Far above any trace (a 100-layer GRPO run takes about 5 MB)."""


def default_folder() -> Path:
    """`$LLAMAMATH_CACHE/traces`, else `llamamath/traces` in the user's cache folder."""
    chosen = os.environ.get("LLAMAMATH_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "traces"
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "llamamath" / "traces"


class TraceCache:
    """A folder of results. None stands for no cache at all."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def path(self, key: str) -> Path | None:
        """Where the result of that key is kept."""
        return None if self.folder is None else self.folder / f"{key}.json"

    def read(self, key: str, versions: dict[str, str]) -> tuple[TraceResult | None, str]:
        """(the result, "") or (None, why the file there cannot be used; "" if there is none)."""
        path = self.path(key)
        if path is None or not path.is_file():
            return None, ""
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"larger than {MAX_FILE_BYTES:,} bytes")
            result = result_from_json(path.read_text(encoding="utf-8"), from_cache=True)
            if result.versions != versions:
                raise ValueError("made with other library versions")
        except (OSError, ValueError) as error:
            return None, f"the cached trace {path.name} could not be used ({error}) and was made again"
        return result, ""

    def write(self, key: str, result: TraceResult) -> str:
        """Keep the result. Returns why it could not be kept, or ""."""
        path = self.path(key)
        if path is None:
            return ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, result_to_json(result))
        except (OSError, LlamamathError) as error:
            return f"the trace could not be cached ({getattr(error, 'message', error)})"
        return ""
