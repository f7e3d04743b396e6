"""The package says the same about itself everywhere: constraints, tested versions, README, continuous integration."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

from llamamath import __version__
from llamamath.cli.packages import TESTED

ROOT = Path(__file__).parents[2]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {normal(name): version for name, version in (line.split("==") for line in lines if line and not line.startswith("#"))}


def project() -> dict[str, object]:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert isinstance(found, dict)
    return found


def test_every_tested_version_is_the_constrained_one() -> None:
    pinned = constraints()
    assert {name: pinned.get(normal(name)) for name in TESTED} == TESTED


def test_every_direct_requirement_is_constrained_and_allowed() -> None:
    pinned, extras = constraints(), project()["optional-dependencies"]
    assert isinstance(extras, dict) and isinstance(project()["dependencies"], list)
    for requirement in [*project()["dependencies"], *(item for items in extras.values() for item in items)]:  # type: ignore[misc]
        name, least = re.fullmatch(r"([A-Za-z0-9._-]+?)(?:>=([0-9.]+))?", requirement).groups()  # type: ignore[union-attr]
        version = pinned[normal(name)]
        if least:
            numbers = [[int(part) for part in text.split(".")] for text in (version, least)]
            assert numbers[0] >= numbers[1], requirement


def test_the_script_and_the_version() -> None:
    assert project()["scripts"] == {"llamamath": "llamamath.cli.main:main"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_ci_can_be_run_and_takes_its_test_command_from_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "README.md" in script.read_text()
    commands = re.findall(r"<!-- test-command -->\n```bash\n(.+?)\n```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(commands) == 1 and "pytest" in commands[0] and "constraints.txt" in commands[0]


def test_the_readme_names_no_machine() -> None:
    text = (ROOT / "README.md").read_text()
    assert not re.search(r"/work/|/root/|/home/|file://", text)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / link).exists(), link
