"""Bytes, and the only place where they become GiB for people.

Sizes are `int` bytes everywhere else; 1 GiB = 2**30 bytes, 1 GB = 10**9 bytes, and the two are never confused.
"""

from __future__ import annotations

import math
import re

from llamamath.errors import FieldError

KIB = 2**10
MIB = 2**20
GIB = 2**30

_FACTORS = {
    "": None,  # a bare number is refused: is it GiB or bytes?
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 2**40,
    "g": GIB,
    "m": MIB,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str, field: str = "size") -> int:
    """`"12GiB"`, `"12 GB"`, `"500MiB"` -> bytes. Raises FieldError for anything else, a bare number included."""
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise FieldError(field, text, "a number with a unit, such as 12GiB, 12GB or 500MiB")
    size = round(float(match.group(1)) * factor)
    if not 0 < size < 2**60:
        raise FieldError(field, text, "a size above zero and below 1 EiB")
    return size


def looks_like_bytes(text: str) -> bool:
    """True for `"12GiB"` and the like: a number with a known unit."""
    match = _SIZE.fullmatch(text)
    return match is not None and _FACTORS.get(match.group(2).lower()) is not None


def gib(size_bytes: float) -> float:
    """Bytes -> GiB as a float."""
    return size_bytes / GIB


def format_bytes(size_bytes: float) -> str:
    """Bytes for people: `"3.42 GiB"`, `"512 MiB"`, `"-1.20 GiB"`."""
    magnitude = abs(size_bytes)
    if magnitude >= 0.995 * GIB:
        return f"{size_bytes / GIB:,.2f} GiB"
    if magnitude >= MIB:
        return f"{size_bytes / MIB:,.0f} MiB"
    return f"{size_bytes / KIB:,.0f} KiB" if magnitude >= KIB else f"{size_bytes:,.0f} B"


def format_count(count: float) -> str:
    """A count for people: `"1.24 B"` parameters, `"18.5 M"`, `"4,096"`."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} B"
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,.0f}"


def format_seconds(seconds: float) -> str:
    """A duration for people: `"38 s"`, `"12 min"`, `"5.2 h"`, `"3.1 days"`."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
