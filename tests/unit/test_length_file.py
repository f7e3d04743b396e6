"""Token lengths from the files people have: numbers, lists, JSON lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamamath.errors import UsageError
from llamamath.planner.job_files.length_file import read_lengths


@pytest.mark.parametrize(
    "text",
    ["10\n20\n30\n", "10, 20, 30", "[10, 20, 30]", '{"num_tokens": 10}\n{"num_tokens": 20}\n\n{"num_tokens": 30}\n', "[[1,2], [3]]"],
)
def test_what_people_have(tmp_path: Path, text: str) -> None:
    (tmp_path / "lengths").write_text(text)
    found = read_lengths(str(tmp_path / "lengths"))
    assert found.at(100) == (2 if text.startswith("[[") else 30)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no token lengths"),
        ("10\nmany\n", "line 2"),
        ("10\n0\n", "line 2"),
        ("1.5", "line 1"),
        ("true", "line 1"),
        ("NaN", "line 1"),
        ('{"words": 3}', "num_tokens"),
        ("[10, -1]", "item 2"),
        ("[10, 20", "JSON"),
    ],
)
def test_what_is_none(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "lengths").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_lengths(str(tmp_path / "lengths"))
