"""The config.json of a hub id: from the hub's cache on this machine, else from the hub itself.

The cache layout (`models--org--name/snapshots/<commit>/config.json`, `refs/main`) and the environment variables are huggingface_hub's.
Nothing here is imported before it is needed: urllib and ssl cost more than a whole plan.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

TIMEOUT_SECONDS = 5.0
MAX_BYTES = 2**20
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_YES = {"1", "ON", "YES", "TRUE"}


def find_config(name: str) -> tuple[bytes | None, str]:
    """(config.json, "") of the hub id `name`, or (None, why not). Looks in the cache first; asks the hub unless HF_HUB_OFFLINE is set."""
    if not _HUB_ID.fullmatch(name) or ".." in name or "--" in name:
        return None, "neither a profile nor a hub id (org/name)"
    cached = cached_config(name)
    if cached is not None:
        return cached, ""
    if any(os.environ.get(variable, "").upper() in _YES for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        return None, "not in the local cache, and HF_HUB_OFFLINE forbids asking the hub"
    return _download(name)


def cached_config(name: str) -> bytes | None:
    """config.json of `name` in huggingface_hub's cache: the commit that refs/main names, else the newest one there is."""
    repository = _cache() / f"models--{name.replace('/', '--')}"
    try:
        found = sorted(repository.glob("snapshots/*/config.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        if not found:
            return None
        main = repository / "refs" / "main"
        if main.is_file():
            commit = main.read_text(encoding="utf-8").strip()
            found.sort(key=lambda file: file.parent.name != commit)
        return found[0].read_bytes() if found[0].stat().st_size <= MAX_BYTES else None
    except (OSError, ValueError):
        return None


def _cache() -> Path:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(os.path.expanduser(base)) / "huggingface" / "hub"


def _download(name: str) -> tuple[bytes | None, str]:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request

    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        return None, "HF_ENDPOINT is not an http(s) address"
    try:
        request = Request(f"{endpoint}/{name}/resolve/main/config.json", headers={"User-Agent": "llamamath"})
        if os.environ.get("HF_TOKEN"):
            request.add_header("Authorization", f"Bearer {os.environ['HF_TOKEN'].strip()}")
        with _opener().open(request, timeout=TIMEOUT_SECONDS) as response:
            data: bytes = response.read(MAX_BYTES + 1)
    except HTTPError as error:
        if error.code in (401, 403):
            return None, "the hub says it is gated, private or not there: accept its licence on its page and set HF_TOKEN"
        if error.code == 404:
            return None, "the hub has no such model, or it has no config.json"
        return None, f"the hub answered with status {error.code}"
    except (OSError, ValueError, HTTPException) as error:
        return None, f"not in the local cache, and the hub could not be reached ({type(error).__name__})"
    return (data, "") if len(data) <= MAX_BYTES else (None, "its config.json is too large")


def _opener() -> OpenerDirector:
    """An opener that does not hand the token on to another host when it is redirected."""
    from email.message import Message
    from typing import IO
    from urllib.parse import urlsplit
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class SameHost(HTTPRedirectHandler):
        def redirect_request(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str) -> Request | None:
            new = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
            if new is not None and urlsplit(new.full_url)[:2] != urlsplit(req.full_url)[:2]:
                new.remove_header("Authorization")
            return new

    return build_opener(SameHost)
