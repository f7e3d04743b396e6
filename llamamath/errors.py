"""The error tree. Every error says what is wrong, what to do about it, and which exit code the command ends with.

    LlamamathError              1
    ├── DoesNotFitError         1   no job fits the budget, or a check failed
    ├── UsageError              2   the input is wrong: a flag, a file, a field
    │   ├── FieldError          2   one named field has a value that is not allowed
    │   └── UnknownNameError    2   a GPU, model, recipe or option that is not known; carries the closest names
    └── UnavailableError        3   a dependency, access or hardware is missing

Only the command line turns these into exits; nothing else catches them to continue.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class LlamamathError(Exception):
    """Base of all errors that a user is meant to read.

    message: what is wrong. hint: what to do (may be empty).
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class DoesNotFitError(LlamamathError):
    """Nothing fits the budget, or a stored plan no longer holds."""


class UsageError(LlamamathError):
    """The input cannot be used as given."""

    exit_code = 2


class FieldError(UsageError):
    """One field of a job, profile or flag has a value outside what is allowed."""

    def __init__(self, field: str, value: object, allowed: str, closest: Sequence[str] = (), hint: str = "") -> None:
        shown = "nothing" if value is None else shorten(repr(value), 80)
        message = f"{field}: {shown} is not allowed; allowed: {allowed}"
        if closest:
            message += f"; closest: {', '.join(closest)}"
        super().__init__(message, hint)
        self.field = field
        self.allowed = allowed
        self.closest = tuple(closest)


class UnknownNameError(UsageError):
    """A name that no profile carries; `closest` holds the nearest known names."""

    def __init__(self, kind: str, name: str, closest: Sequence[str], hint: str = "") -> None:
        message = f"unknown {kind} {shorten(repr(name), 80)}"
        if closest:
            message += f"; closest: {', '.join(closest)}"
        super().__init__(message, hint)
        self.kind = kind
        self.name = name
        self.closest = tuple(closest)


class UnavailableError(LlamamathError):
    """A dependency, permission or piece of hardware is missing."""

    exit_code = 3


def shorten(text: str, limit: int) -> str:
    """`text`, cut in the middle to `limit` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def closest_names(name: str, candidates: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """The `limit` candidates most like `name`, best first; empty when none is near (ratio < 0.5)."""
    table = {candidate.casefold(): candidate for candidate in candidates}
    found = difflib.get_close_matches(name.casefold()[:200], list(table), n=limit, cutoff=0.5)
    return tuple(table[key] for key in found)
