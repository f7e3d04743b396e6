"""Every row of every data file says where it is from and when that was looked at. Unknown is absent, never a guess."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PROFILES = Path(__file__).parents[2] / "llamamath" / "profiles"
FILES = sorted(PROFILES.rglob("*.toml"))


def rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """(place, row with what it inherits) for each table of each array at the top of the file."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    common = content.get("common", {})
    for kind, tables in content.items():
        for number, row in enumerate(tables if isinstance(tables, list) else (), 1):
            yield f"{path.name}: {kind} {number} ({row.get('name', row.get('id', row.get('model', '')))})", {**common, **row}


def test_there_are_data_files() -> None:
    assert {path.name for path in FILES} >= {"gpus.toml", "models.toml", "stacks.toml", "llama-math.toml"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_row_has_source_and_date(path: Path) -> None:
    found = list(rows(path))
    assert found, f"{path.name} has no rows: is its layout another one?"
    for place, row in found:
        source, accessed = row.get("source"), row.get("accessed")
        assert isinstance(source, str) and len(source.strip()) > 8, f"{place}: no source"
        day = accessed if isinstance(accessed, datetime.date) else None
        assert day or (isinstance(accessed, str) and re.fullmatch(r"20\d\d-\d\d-\d\d", accessed)), f"{place}: no date of access"
