"""The ledger: what is allocated, by component, while a symbolic model runs, and the worst instants of each phase.

A Buffer lives as long as something refers to it, like a torch storage: CPython's reference counts free it when the layer code drops
its last name or the backward engine releases a saved tensor, so lifetimes follow the Python code they imitate.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamamath.planner.estimate import COMPONENTS
from llamamath.planner.memory.polynomial import Size, coefficients, dominates

BASE, LORA, OPTIMIZER, GRADIENT, ACTIVATION, LOGITS, KV_CACHE, TEMPORARY = range(len(COMPONENTS))


class Buffer:
    """`size` bytes of one component, counted in `ledger` until the last reference goes."""

    __slots__ = ("component", "entry", "ledger", "size")

    def __init__(self, ledger: Ledger, size: Size, component: int) -> None:
        self.ledger = ledger
        self.size = size
        self.component = component
        self.entry = ledger.recorder.allocated(size) if ledger.recorder is not None else 0
        """Its number in the recording, if there is one."""
        ledger.live[component] += size
        ledger.grew = True

    def __del__(self) -> None:
        ledger = self.ledger
        if ledger.grew:
            ledger.record()
        ledger.live[self.component] -= self.size
        if self.entry and ledger.recorder is not None:
            ledger.recorder.events.append(-self.entry)

    def relabel(self, component: int) -> None:
        """Count these bytes under another component from now on (an activation's gradient becomes a parameter's)."""
        self.ledger.live[self.component] -= self.size
        self.ledger.live[component] += self.size
        self.component = component


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment at which memory is largest for some values of the monomials.

    total: linear form of all bytes; components: one linear form for each of COMPONENTS; where: what was running.
    """

    where: str
    total: tuple[int, ...]
    components: tuple[tuple[int, ...], ...]


class Recorder:
    """Allocations and releases in order: i > 0 allocates tensor i, of `sizes[i - 1]`; -i frees it."""

    def __init__(self) -> None:
        self.events: list[int] = []
        self.sizes: list[Size] = []

    def allocated(self, size: Size) -> int:
        """Note an allocation; its number."""
        self.sizes.append(size)
        self.events.append(len(self.sizes))
        return len(self.sizes)


class Ledger:
    """Live bytes by component, and every local maximum of the phase that is running."""

    def __init__(self) -> None:
        self.live: list[Size] = [0] * len(COMPONENTS)
        self.grew = False
        self.where = ""
        self.sizes: set[Size] = set()
        """Sizes of all tensors allocated so far."""
        self.recorder: Recorder | None = None
        self._maxima: dict[Size, tuple[str, tuple[Size, ...]]] = {}
        self._phases: dict[str, list[dict[Size, tuple[str, tuple[Size, ...]]]]] = {}

    def start_recording(self) -> Recorder:
        """Note every allocation and release from now on."""
        self.recorder = Recorder()
        return self.recorder

    def stop_recording(self) -> None:
        """Note no more; what is alive is left alive in the recording."""
        self.recorder = None

    def enter(self, phase: str) -> None:
        """Start (or resume) recording under `phase`."""
        if self.grew:
            self.record()
        self._maxima = {}
        self._phases.setdefault(phase, []).append(self._maxima)
        self.record()

    def record(self) -> None:
        """Note the present state as a local maximum."""
        self.grew = False
        total = sum(self.live)
        if total not in self._maxima:
            self._maxima[total] = (self.where, tuple(self.live))

    @property
    def total(self) -> Size:
        """All live bytes."""
        return sum(self.live)

    def largest(self) -> tuple[tuple[int, ...], ...]:
        """The tensor sizes that no other tensor exceeds in every coefficient."""
        kept: list[tuple[int, ...]] = []
        for terms in sorted(map(coefficients, self.sizes), key=lambda terms: (len(terms), sum(terms)), reverse=True):
            if not any(dominates(other, terms) for other in kept):
                kept.append(terms)
        return tuple(kept)

    def instants(self) -> dict[str, tuple[Instant, ...]]:
        """For each phase the instants that no other instant of that phase exceeds in every coefficient."""
        if self.grew:
            self.record()
        return {phase: _undominated(groups) for phase, groups in self._phases.items()}


def _undominated(groups: list[dict[Size, tuple[str, tuple[Size, ...]]]]) -> tuple[Instant, ...]:
    candidates = sorted(
        ((coefficients(total), where, live) for group in groups for total, (where, live) in group.items()),
        key=lambda candidate: (len(candidate[0]), sum(candidate[0])),
        reverse=True,
    )
    kept: list[tuple[tuple[int, ...], str, tuple[Size, ...]]] = []
    for candidate in candidates:
        if not any(dominates(other[0], candidate[0]) for other in kept):
            kept.append(candidate)
    return tuple(Instant(where, total, tuple(coefficients(part) for part in live)) for total, where, live in kept)
