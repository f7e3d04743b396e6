"""Reading one field of a configuration at a time: right type, within bounds, or a FieldError that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from llamamath.errors import FieldError, closest_names

MISSING = object()
"""Stands for "no default": the field has to be there."""


def show(value: object) -> object:
    """`value` as an error message may print it: containers and enormous numbers are described, not printed."""
    if isinstance(value, Mapping):
        return f"an object of {len(value)} keys"
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return f"a list of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return value


class Fields:
    """Typed access to one object of a configuration. `prefix` (such as `text_config.`) and `where` go into the error messages.

    A field that is absent or null takes the default. Booleans are not integers here, and floats are not either.
    """

    def __init__(self, values: Mapping[str, object], where: str, prefix: str = "") -> None:
        self.values = values
        self.where = where
        self.prefix = prefix

    def error(self, name: str, value: object, allowed: str, closest: Sequence[str] = ()) -> FieldError:
        """The FieldError for `name`; for a missing field it also names a key that looks like a misspelling of it."""
        if value is None and not closest:
            closest = closest_names(name, [key for key in self.values if isinstance(key, str) and len(key) <= 80 and key != name], 1)
        return FieldError(f"{self.prefix}{name}", show(value), allowed, closest, hint=f"in the configuration of {self.where}")

    def integer(self, name: str, low: int, high: int, default: int | object = MISSING) -> int:
        """An integer within [low, high]."""
        value = self.values.get(name)
        if value is None:
            value = default
        allowed = f"an integer from {low:,} to {high:,}"
        if value is MISSING:
            raise self.error(name, None, allowed)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(name, value, allowed)
        return value

    def optional_integer(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        """Like `integer`, but an explicit null stays None; `default` is for an absent key only."""
        if name not in self.values:
            return default
        return None if self.values[name] is None else self.integer(name, low, high)

    def number(self, name: str, default: float) -> float:
        """A finite number above zero."""
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15 or not math.isfinite(value):
            raise self.error(name, value, "a finite number above 0")
        return float(value)

    def optional_number(self, name: str, default: float | None = None) -> float | None:
        """Like `number`, but an explicit null stays None; `default` is for an absent key only."""
        if name not in self.values:
            return default
        return None if self.values[name] is None else self.number(name, 1.0)

    def boolean(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def nested(self, name: str) -> Fields:
        """An object within this one; it has to be there."""
        value = self.values.get(name)
        if not isinstance(value, Mapping):
            raise self.error(name, value, "an object")
        return Fields(value, self.where, f"{self.prefix}{name}.")

    def optional_nested(self, name: str) -> Fields | None:
        """Like `nested`, but None where it is absent or null."""
        return None if self.values.get(name) is None else self.nested(name)

    def indices(self, name: str, count: int, limit_name: str) -> tuple[int, ...] | None:
        """A list of different integers within [0, count), sorted; None when absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise self.error(name, value, "a list of integers")
        for index in value:
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
                raise self.error(name, index, f"indices from 0 to {count - 1}, since {self.prefix}{limit_name} says so")
        if len(set(value)) != len(value):
            repeated = next(index for index in value if value.count(index) > 1)
            raise self.error(name, repeated, "each index once")
        return tuple(sorted(value))

    def choices(self, name: str, allowed: Sequence[str], length: int, length_name: str) -> tuple[str, ...] | None:
        """A list of `length` strings out of `allowed`; None when absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise self.error(name, value, f"a list of {' or '.join(allowed)}")
        for item in value:
            if not isinstance(item, str) or item not in allowed:
                closest = closest_names(item, allowed) if isinstance(item, str) else ()
                raise self.error(name, item, ", ".join(allowed), closest)
        if len(value) != length:
            raise self.error(name, value, f"a list of {length} entries, since {self.prefix}{length_name} is {length}")
        return tuple(value)
