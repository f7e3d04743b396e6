"""Memory as bars: one row per phase, stacked by component, with the limit and the interval drawn to the same scale.

In colour a component is a coloured block, without colour a letter, so that a log or a screen reader has the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from llamamath.cli.layout import print_heading, print_line
from llamamath.cli.output import in_colour, is_ascii
from llamamath.planner.estimate import COMPONENTS, Estimate, PhaseMemory
from llamamath.units import GIB, format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from llamamath.planner.budget import Verdict
    from llamamath.planner.device import Device

LOOKS = {
    "base_weights": ("base weights", "blue", "W"),
    "lora": ("LoRA", "cyan", "L"),
    "optimizer": ("optimizer", "magenta", "O"),
    "gradient": ("gradients", "yellow", "G"),
    "activation": ("activations", "green", "A"),
    "logits": ("logits", "red", "X"),
    "kv_cache": ("KV cache", "bright_magenta", "K"),
    "temporary": ("temporary", "bright_black", "T"),
}
"""Component -> name for people, colour, letter."""

LABEL_CELLS = 11
SIZE_CELLS = 11
MOST_BAR_CELLS = 96
LEAST_BAR_CELLS = 10
"""Narrower than this a bar says nothing, and is left out."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """Cells for bytes: `cells` of them stand for 0 to `top_bytes`."""

    cells: int
    top_bytes: int

    def at(self, size_bytes: int) -> int:
        """The cell boundary nearest to `size_bytes`."""
        return min(self.cells, round(size_bytes / self.top_bytes * self.cells))


@dataclass(frozen=True, slots=True)
class _Pen:
    """The characters and styles this console can show."""

    colour: bool
    block: str
    rule: str
    limit: str
    ends: str

    @classmethod
    def of(cls, console: Console) -> _Pen:
        if is_ascii(console):
            return cls(colour=in_colour(console), block="#", rule="-", limit="|", ends="<o>")
        return cls(colour=in_colour(console), block="█", rule="─", limit="│", ends="├●┤")

    def fill(self, component: str, cells: int) -> Text:
        """`cells` cells of one component."""
        _, colour, letter = LOOKS[component]
        return Text(self.block * cells, style=colour) if self.colour else Text(letter * cells)

    def swatch(self, component: str) -> Text:
        """What stands before the component's name in the legend."""
        _, colour, letter = LOOKS[component]
        return Text(self.block * 2, style=colour) if self.colour else Text(letter)


def print_memory(console: Console, estimate: Estimate, verdict: Verdict, device: Device) -> None:
    """Every phase as a bar, the legend of the peak, and what the figures mean."""
    pen = _Pen.of(console)
    cells = min(MOST_BAR_CELLS, console.width - LABEL_CELLS - SIZE_CELLS - 2)
    scale = _Scale(cells=max(0, cells), top_bytes=max(verdict.limit_bytes, estimate.peak.high_bytes, 1))
    drawn = scale.cells >= LEAST_BAR_CELLS
    _print_head(console, pen, scale, verdict.limit_bytes, drawn)
    for phase in estimate.phases:
        row = _label(phase.name, phase.total_bytes, peak=phase.name == estimate.peak.phase)
        bar = _with_limit(pen, scale, _stack(pen, scale, phase), verdict.limit_bytes) if drawn else Text()
        print_line(console, Text.assemble(row, bar))
    row = _label("in RAM" if device.kind == "cpu" else "on card", estimate.peak.device_bytes)
    bar = _with_limit(pen, scale, _interval(pen, scale, estimate), verdict.limit_bytes) if drawn else Text()
    print_line(console, Text.assemble(row, bar))
    print_legend(console, pen, estimate)


def _print_head(console: Console, pen: _Pen, scale: _Scale, limit_bytes: int, drawn: bool) -> None:
    """The limit's size over its mark."""
    head = Text("phase".ljust(LABEL_CELLS) + "peak".rjust(SIZE_CELLS - 1) + "  ", style="bold")
    if drawn:
        words = f"limit {format_bytes(limit_bytes)}"
        place = max(0, min(scale.at(limit_bytes), scale.cells - 1) + 1 - len(words))
        head = Text.assemble(head, " " * place, (words, "bold red"))
    print_line(console, head)


def _label(name: str, size_bytes: int, peak: bool = False) -> Text:
    style = "bold" if peak else ""
    size = f"{size_bytes / GIB:,.2f} GiB".rjust(SIZE_CELLS)
    return Text.assemble((("> " if peak else "  ") + name.ljust(LABEL_CELLS - 2), style), (size, style), " ")


def _stack(pen: _Pen, scale: _Scale, phase: PhaseMemory) -> Text:
    """Components end where their running sum does, so that rounding never makes a bar longer than its total."""
    parts, done_bytes, done = list[Text](), 0, 0
    for component in COMPONENTS:
        done_bytes += phase.component(component)
        end = scale.at(done_bytes)
        parts.append(pen.fill(component, end - done))
        done = end
    return Text.assemble(*parts)


def _interval(pen: _Pen, scale: _Scale, estimate: Estimate) -> Text:
    """`├──●───┤`: from the least through the expected to the most that the device may have to hold."""
    peak = estimate.peak
    low, expected, high = (min(scale.at(size), scale.cells - 1) for size in (peak.low_bytes, peak.device_bytes, peak.high_bytes))
    line = [" "] * (high + 1)
    line[low : high + 1] = pen.rule * (high + 1 - low)
    line[low], line[high] = pen.ends[0], pen.ends[2]
    line[expected] = pen.ends[1]
    return Text("".join(line))


def _with_limit(pen: _Pen, scale: _Scale, bar: Text, limit_bytes: int) -> Text:
    """The bar with the limit's mark over it."""
    place = min(scale.at(limit_bytes), scale.cells - 1)
    bar = bar.copy()
    bar.pad_right(max(0, scale.cells - len(bar.plain)))
    return Text.assemble(bar[:place], (pen.limit, "bold red"), bar[place + 1 :])


def print_legend(console: Console, pen: _Pen, estimate: Estimate) -> None:
    """The components at the peak, largest first, as many to a line as fit."""
    phase = estimate.phase(estimate.peak.phase)
    if phase is None:
        return
    print_heading(console, f"at the peak, in {phase.name}" + (f" ({phase.instant})" if phase.instant else "") + ":", "")
    sizes = {component: phase.component(component) for component in COMPONENTS}
    line = Text("  ")
    for component in sorted((name for name, size in sizes.items() if size), key=lambda name: -sizes[name]):
        entry = Text.assemble(pen.swatch(component), f" {LOOKS[component][0]} ", (format_bytes(sizes[component]), "bold"))
        if len(line.plain) + len(entry.plain) > console.width and line.plain.strip():
            print_line(console, line)
            line = Text("  ")
        line = Text.assemble(line, entry, "   ")
    print_line(console, line)
