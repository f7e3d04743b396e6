"""Taking out of a capture what a report must not carry, so that it still parses to the same machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]{4,}")
_PSEUDONYM = re.compile(r"(GPU|MIG)-x\d+x")


def redact(document: Mapping[str, object]) -> dict[str, object]:
    """A copy with GPU UUIDs replaced by pseudonyms (`GPU-x0x`), the home folder by `~`, and the user's and the host's name by `-`.

    A pseudonym stands wherever its UUID stood, also where CUDA_VISIBLE_DEVICES gives only the first letters, so visibility survives.
    """
    pseudonyms = {uuid: f"{uuid[:3]}-x{number}x" for number, uuid in enumerate(dict.fromkeys(_uuids(document)))}
    personal = tuple(_personal())

    def pseudonym(match: re.Match[str]) -> str:
        found = match.group()
        if _PSEUDONYM.fullmatch(found):
            return found
        meant = [stand_in for uuid, stand_in in pseudonyms.items() if uuid.startswith(found)]
        return meant[0] if len(meant) == 1 else f"{match.group(1)}-redacted"

    def clean(value: object, key: str) -> object:
        if isinstance(value, Mapping):
            return {str(name): clean(item, str(name)) for name, item in value.items()}
        if isinstance(value, list):
            return [clean(item, key) for item in value]
        if not isinstance(value, str):
            return value
        text = _UUID.sub(pseudonym, value)
        for secret, stand_in in personal if key == "message" or key.isupper() else ():
            text = text.replace(secret, stand_in)
        return text

    return {str(name): clean(item, str(name)) for name, item in document.items()}


def _uuids(value: object) -> Iterator[str]:
    """Every UUID that NVML reported, in order: parents before their MIG instances."""
    if isinstance(value, Mapping):
        uuid = value.get("uuid")
        if isinstance(uuid, str):
            yield uuid
        for item in value.values():
            yield from _uuids(item)
    elif isinstance(value, list):
        for item in value:
            yield from _uuids(item)


def _personal() -> Iterator[tuple[str, str]]:
    """What may stand in messages and variables: the home folder, then names of four letters and more (shorter ones hit ordinary words)."""
    home = os.path.expanduser("~")
    if len(home) > 3:
        yield home, "~"
    for name in (os.environ.get("USER"), os.environ.get("USERNAME"), _host_name()):
        if name and len(name) >= 4 and name != "root":
            yield name, "-"


def _host_name() -> str:
    name = os.environ.get("HOSTNAME") or os.environ.get("COMPUTERNAME")
    if name:
        return name
    try:
        return Path("/etc/hostname").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
