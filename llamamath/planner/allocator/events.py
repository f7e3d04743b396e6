"""The stream of events of a training step, as a trace produces it and a replay consumes it. Data only."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["alloc", "free", "phase"]


class Event(NamedTuple):
    """One event. A named tuple and not a dataclass: a step has up to millions.

    alloc: storage `id` of `size_bytes` begins to live; `label` says what it is: a component, or `component/detail`. free: `id` is gone.
    phase: the phase called `label` begins; it may begin again later.
    """

    kind: Kind
    id: int = 0
    size_bytes: int = 0
    label: str = ""


def alloc(identity: int, size_bytes: int, label: str = "") -> Event:
    """An allocation."""
    return Event("alloc", identity, size_bytes, label)


def free(identity: int) -> Event:
    """The end of an allocation."""
    return Event("free", identity)


def phase(name: str) -> Event:
    """The begin of a phase."""
    return Event("phase", 0, 0, name)
