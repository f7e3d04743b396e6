"""One field of a job file -> one value of the right type and range. Each reader takes (field name, raw value) and raises FieldError."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from llamamath.errors import FieldError, closest_names
from llamamath.planner.job import ALL_LINEAR

Reader = Callable[[str, Any], Any]

_NUMBER = re.compile(r"[-+]?[0-9.][0-9_,.]*(?:[eE][-+]?[0-9]+)?")
_MODULE = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
MAX_TEXT = 4096
MAX_MODULES = 256


def whole_number(minimum: int, maximum: int) -> Reader:
    """Reader of an integer in [minimum, maximum]. `true`, `8.0` and `"8"` are not integers."""
    allowed = f"a whole number from {minimum:,} to {maximum:,}"

    def read(field: str, value: Any) -> int:
        if type(value) is int and minimum <= value <= maximum:
            return value
        raise FieldError(field, value, allowed, hint=_number_hint(value))

    return read


def number(minimum: float, maximum: float, *, below: bool = False) -> Reader:
    """Reader of a finite number in [minimum, maximum], or [minimum, maximum) with `below`."""
    allowed = f"a number from {minimum:g} to " + (f"below {maximum:g}" if below else f"{maximum:g}")

    def read(field: str, value: Any) -> float:
        if type(value) in (int, float) and minimum <= value <= maximum and not (below and value == maximum):
            return float(value)
        raise FieldError(field, value, allowed, hint=_number_hint(value))

    return read


def _number_hint(value: Any) -> str:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return "write the number without quotes, underscores or thousands separators"
    return f"write {int(value)}" if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else ""


def one_of(options: Sequence[str]) -> Reader:
    """Reader of one of the documented words, exactly as documented; an error names the closest."""
    allowed = ", ".join(options)
    known = frozenset(options)

    def read(field: str, value: Any) -> str:
        if isinstance(value, str) and value in known:
            return value
        closest = closest_names(value, options) if isinstance(value, str) else ()
        raise FieldError(field, value, allowed, closest)

    return read


def some_of(options: Sequence[str]) -> Reader:
    """Reader of a list of documented words, each at most once -> a tuple in the given order."""
    allowed = f"a list of {', '.join(options)}; [] for none"
    word = one_of(options)

    def read(field: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or len(value) > len(options):
            raise FieldError(field, value, allowed, hint=f"write [{value}]" if value in options else "")
        found = tuple(word(field, item) for item in value)
        if len(set(found)) != len(found):
            raise FieldError(field, list(found), allowed + ", each once")
        return found

    return read


def true_or_false(field: str, value: Any) -> bool:
    """A boolean; `yes`, `on` and `1` are not."""
    if isinstance(value, bool):
        return value
    raise FieldError(field, value, "true or false")


def text(field: str, value: Any) -> str:
    """A name or path: printable, without blanks around it."""
    allowed = f"text of at most {MAX_TEXT:,} printable characters without blanks around it"
    if not isinstance(value, str) or not value or len(value) > MAX_TEXT or value != value.strip() or not value.isprintable():
        raise FieldError(field, value, allowed, hint="put it in quotes" if isinstance(value, int | float) else "")
    return value


def optional(reader: Reader) -> Reader:
    """The same reader, with null (nothing) allowed."""

    def read(field: str, value: Any) -> Any:
        return None if value is None else reader(field, value)

    return read


_REPEATED_REPEAT = re.compile(r"[*+}][^()]*\)[?]?[*+{]|[*+}]\)+[*+{]")
"""A quantifier inside a group that is itself quantified: such patterns can take exponential time."""


def target_modules(field: str, value: Any) -> str | tuple[str, ...]:
    """PEFT's `target_modules`: `all-linear`, a list of module names, or a regular expression that a whole module path must match."""
    allowed = f"{ALL_LINEAR}, a list of module names such as [q_proj, v_proj], or a regular expression for whole module paths"
    if isinstance(value, list | tuple):
        if not 0 < len(value) <= MAX_MODULES or not all(isinstance(item, str) and _MODULE.fullmatch(item) for item in value):
            raise FieldError(field, value, allowed)
        if len(set(value)) != len(value):
            raise FieldError(field, value, allowed + ", each name once")
        return tuple(value)
    pattern = text(field, value)
    if pattern.casefold().replace("_", "-") == ALL_LINEAR:
        if pattern != ALL_LINEAR:
            raise FieldError(field, value, allowed, (ALL_LINEAR,))
        return pattern
    if len(pattern) > 500:
        raise FieldError(field, value, allowed)
    if _REPEATED_REPEAT.search(pattern):
        raise FieldError(field, value, allowed, hint="a repeated group must not repeat inside, as in (.*)*: matching it may never end")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise FieldError(field, value, allowed, hint=f"not a regular expression: {error}") from error
    return pattern
