"""From an event stream to bytes per component at the worst instant of each phase: what `max_memory_allocated` would say, taken apart."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from llamamath.planner.estimate import COMPONENTS, PHASES
from llamamath.planner.trace.stream import Stream, rounded

UNCOUNTED = ("build", "between", "fill", "teardown")
"""Stretches that no real run has in this form: they prepare the next phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instant:
    """The worst moment of one phase: after entry `position` of the stream."""

    phase: str
    detail: str
    position: int
    allocated_bytes: int
    components: dict[str, int]
    operation: str
    """The tensor whose allocation made the peak, for people."""


def worst_instants(stream: Stream) -> tuple[Instant, ...]:
    """The worst instant of every phase, in the order of PHASES (phases unknown there come last, in the order they ran).

    Sizes are rounded to 512 bytes, as torch's statistics are. `components` adds up to `allocated_bytes`.
    """
    component_of = [COMPONENTS.index(label.component) for label in stream.labels]
    alive = [0] * len(COMPONENTS)
    sizes: array[int] = array("q")
    worst: dict[str, tuple[int, int, str, tuple[int, ...], int]] = {}
    total = 0
    for start, end, mark in stream.phases():
        counted = mark.phase not in UNCOUNTED
        peak = worst.get(mark.phase, (-1,))[0]
        if counted and total > peak:
            worst[mark.phase] = (total, start - 1, mark.detail, tuple(alive), 0)
            peak = total
        for position in range(start, end):
            entry = stream.entries[position]
            if entry < 0:
                size = sizes[-entry - 1]
                total -= size
                alive[component_of[stream.label_of[-entry - 1]]] -= size
                continue
            size = rounded(entry)
            sizes.append(size)
            total += size
            alive[component_of[stream.label_of[len(sizes) - 1]]] += size
            if counted and total > peak:
                peak = total
                worst[mark.phase] = (total, position, mark.detail, tuple(alive), len(sizes))
    ordered = sorted(worst, key=lambda name: PHASES.index(name) if name in PHASES else len(PHASES))
    return tuple(_instant(name, worst[name], stream) for name in ordered)


def _instant(name: str, found: tuple[int, int, str, tuple[int, ...], int], stream: Stream) -> Instant:
    total, position, detail, alive, identity = found
    return Instant(
        phase=name,
        detail=detail,
        position=position,
        allocated_bytes=total,
        components=dict(zip(COMPONENTS, alive, strict=True)),
        operation=stream.label(identity).text if identity else "",
    )


def live_tensors(stream: Stream, position: int) -> list[tuple[int, int]]:
    """(id, bytes as asked for) of every tensor alive after entry `position`."""
    alive: dict[int, int] = {}
    for index, (kind, identity, size) in enumerate(stream.events()):
        if index > position:
            break
        if kind == "alloc":
            alive[identity] = size
        else:
            del alive[identity]
    return list(alive.items())
