"""Paragraphs, points and columns, wrapped at the terminal's width and without blanks at line ends, so that pipes and pastes stay clean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

LEAST_CELLS = 16
"""Narrower than this nothing is wrapped: the terminal does it."""
GAP = 2


def print_line(console: Console, line: Text) -> None:
    """One line as it is, whatever the width."""
    line = line.copy()
    line.rstrip()  # in place, spans included
    console.print(line, no_wrap=True, overflow="ignore", crop=False)


def print_heading(console: Console, words: str, style: str = "bold") -> None:
    """A line that says what follows."""
    print_line(console, Text(words, style=style))


def print_hanging(console: Console, head: Text, body: Text) -> None:
    """`body` beside `head`, its further lines under its first."""
    width = max(LEAST_CELLS, console.width - head.cell_len)
    for number, line in enumerate(body.wrap(console, width, overflow="fold") or [Text("")]):
        print_line(console, Text.assemble(head if number == 0 else " " * head.cell_len, line))


def print_paragraph(console: Console, words: str | Text, indent: int = 0, style: str = "") -> None:
    """Text with every line indented alike."""
    print_hanging(console, Text(" " * indent), Text(words, style=style) if isinstance(words, str) else words)


def print_points(console: Console, points: Iterable[str], indent: int = 2) -> None:
    """`- point`, wrapped under itself."""
    for point in points:
        print_hanging(console, Text(" " * indent + "- "), Text(point))


def print_looked_at(console: Console, lines: Sequence[str]) -> None:
    """How the device was found, in one line however it wraps."""
    if lines:
        print_hanging(console, Text("looked at: ", style="bold"), Text("; ".join(lines)))


def print_pairs(console: Console, pairs: Iterable[tuple[str, str]], indent: int = 2) -> None:
    """Names in one column, text wrapped in the next."""
    found = list(pairs)
    width = max((len(name) for name, _ in found), default=0)
    for name, words in found:
        print_hanging(console, Text.assemble(" " * indent, (name.ljust(width + GAP), "bold")), Text(words))


def print_columns(
    console: Console, header: Sequence[str], rows: Sequence[Sequence[str | Text]], *, right: str = "", indent: int = 0
) -> None:
    """A table without lines. right: one letter for each column, `r` for those that are aligned to the right. The last one is wrapped."""
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    heads = [Text(name, style="bold") for name in header]
    table = [heads, *cells] if any(header) else cells
    widths = [max(row[column].cell_len for row in table) for column in range(len(header))]
    for row in table:
        line = Text(" " * indent)
        for column, cell in enumerate(row[:-1]):
            blank = " " * (widths[column] - cell.cell_len)
            pair = (blank, cell) if right[column : column + 1] == "r" else (cell, blank)
            line = Text.assemble(line, *pair, " " * GAP)
        last = row[-1]
        if right[len(row) - 1 :] == "r":
            last = Text.assemble(" " * (widths[-1] - last.cell_len), last)
        print_hanging(console, line, last)
