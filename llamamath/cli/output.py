"""Where things are printed: JSON and people's text to standard output, errors and progress to standard error.

Colour only for a terminal that wants it (`NO_COLOR`, `TERM=dumb` and pipes do not); without colour the text says everything that colour
said, and without UTF-8 it is plain ASCII.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from llamamath.errors import LlamamathError


def people(*, errors: bool = False) -> Console:
    """A console that prints what it is given: no markup, no emoji, no guessing of what is a number."""
    from rich.console import Console

    return Console(stderr=errors, highlight=False, markup=False, emoji=False)


def in_colour(console: Console) -> bool:
    """Whether colour reaches the reader, so that it may carry meaning."""
    return console.color_system is not None and not console.no_color


def is_ascii(console: Console) -> bool:
    """Whether the output cannot show more than ASCII."""
    return not console.encoding.lower().startswith("utf")


def print_json(document: Mapping[str, object]) -> None:
    """One JSON document on one line of standard output, in ASCII so that any pipe carries it."""
    print(json.dumps(document, allow_nan=False))


def print_progress(line: str) -> None:
    """One line to standard error, where it does not get into a document."""
    print(line, file=sys.stderr, flush=True)


def print_error(error: LlamamathError) -> None:
    """`error: message`, and `hint: what to do`, on standard error; long lines are left to the terminal to wrap."""
    from rich.text import Text

    console = people(errors=True)
    console.print(Text.assemble(("error: ", "bold red"), _printable(error.message)), soft_wrap=True)
    if error.hint:
        console.print(Text.assemble(("hint: ", "bold cyan"), _printable(error.hint)), soft_wrap=True)


def _printable(text: str) -> str:
    """Control characters (of a file's name, say) as escapes, so that no input steers the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode("ascii") for char in text)
