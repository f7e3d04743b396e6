"""Reading the data files that lie beside this module. They are part of the package, so a broken one is our own mistake."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


@cache
def read_toml(*path: str) -> dict[str, Any]:
    """The content of one packaged TOML file, read once: `read_toml("stacks.toml")`. Callers must not change it."""
    with open(_FOLDER.joinpath(*path), "rb") as file:
        return tomllib.load(file)


def list_toml(*folder: str) -> list[str]:
    """Names of the TOML files in one packaged folder, sorted."""
    return sorted(path.name for path in _FOLDER.joinpath(*folder).glob("*.toml"))
