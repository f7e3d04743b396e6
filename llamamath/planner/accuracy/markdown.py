"""Pieces of Markdown: tables, sizes, shares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llamamath.units import gib


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def clip(text: str, limit: int = 60) -> str:
    """`text`, shortened to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def size(size_bytes: int) -> str:
    """Bytes as GiB with two decimals, without the unit."""
    return f"{gib(size_bytes):.2f}"


def percent(share: float, decimals: int = 0) -> str:
    """0.153 -> `15 %`; below 0.1 % with three decimals where decimals are asked for at all."""
    return f"{100 * share:.{3 if decimals and share < 0.001 else decimals}f} %"


def signed(share: float) -> str:
    """-0.153 -> `-15.3 %`; below 0.1 % with three decimals."""
    return f"{100 * share:+.{3 if abs(share) < 0.001 else 1}f} %"
