"""What the README shows is what the commands print. `LLAMAMATH_UPDATE_README=1` writes it anew."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable

import pytest
from command_line import ROOT, Answer

README = ROOT / "README.md"
BLOCK = re.compile(r"```text\n\$ llamamath (.+?)\n(.*?)```", flags=re.DOTALL)


def shown(call: Callable[..., Answer], line: str) -> str:
    """The output of one command line, through `head` or `grep -A` where it names them."""
    command, _, through = line.partition(" | ")
    lines = call(*shlex.split(command)).out.splitlines()
    if through.startswith("head -"):
        lines = lines[: int(through.removeprefix("head -"))]
    elif through:
        after, words = re.fullmatch(r'grep -A (\d+) "(.+)"', through).groups()  # type: ignore[union-attr]
        first = next(number for number, text in enumerate(lines) if words in text)
        lines = lines[first : first + int(after) + 1]
    return "".join(f"{text}\n" for text in lines)


def test_the_readme_shows_what_is_printed(call: Callable[..., Answer]) -> None:
    text = README.read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) >= 3
    written = BLOCK.sub(lambda match: f"```text\n$ llamamath {match.group(1)}\n{shown(call, match.group(1))}```", text)
    if os.environ.get("LLAMAMATH_UPDATE_README"):
        README.write_text(written, encoding="utf-8")
        pytest.skip("README.md written")
    assert written == text
