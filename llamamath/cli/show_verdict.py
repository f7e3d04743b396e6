"""The verdict in words, the interval with its reasons, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from llamamath.cli.layout import print_hanging, print_heading, print_pairs, print_paragraph, print_points
from llamamath.planner.budget import DOES_NOT_FIT, FITS, TIGHT
from llamamath.units import format_bytes, format_count

if TYPE_CHECKING:
    from rich.console import Console

    from llamamath.planner.budget import Verdict
    from llamamath.planner.device import Device
    from llamamath.planner.estimate import Estimate
    from llamamath.planner.fit.suggestions import Suggestion

WORDS = {FITS: ("FITS", "bold green"), TIGHT: ("TIGHT", "bold yellow"), DOES_NOT_FIT: ("DOES NOT FIT", "bold red")}


def print_verdict(console: Console, estimate: Estimate, verdict: Verdict, device: Device, ram_bytes: int | None = None) -> None:
    """One word, and the figures that decide it."""
    word, style = WORDS[verdict.verdict]
    print_paragraph(console, Text.assemble((word, style), ": ", verdict_words(estimate, verdict, device, ram_bytes)))


def verdict_words(estimate: Estimate, verdict: Verdict, device: Device, ram_bytes: int | None = None) -> str:
    """Why the verdict is what it is, with the numbers. ram_bytes: the limit of host memory, where there is one."""
    peak, limit = estimate.peak, format_bytes(verdict.limit_bytes)
    high, expected = format_bytes(peak.high_bytes), format_bytes(peak.device_bytes)
    memory = "RAM" if device.kind == "cpu" else "GPU memory"
    if verdict.binding == "host memory":
        there = "" if ram_bytes is None else f", and {format_bytes(ram_bytes)} may be used"
        return f"{format_bytes(estimate.host.peak_bytes)} of RAM would be needed{there}"
    if verdict.verdict == FITS:
        return f"at most {high} of {limit} {memory}, {format_bytes(verdict.headroom_bytes)} to spare"
    over = format_bytes(-verdict.headroom_bytes)
    if verdict.verdict == TIGHT:
        return f"{expected} expected of {limit} {memory}, but it may take {high}, {over} too much; it may run out of memory (exit code 1)"
    return f"{expected} of {memory} expected, {high} at most; the limit is {limit}, {over} less"


def print_figures(console: Console, estimate: Estimate, verdict: Verdict, device: Device) -> None:
    """What torch and nvidia-smi would say, the interval and its reasons, RAM, parameters, basis."""
    peak, host = estimate.peak, format_bytes(estimate.host.peak_bytes)
    interval = f"between {format_bytes(peak.low_bytes)} and {format_bytes(peak.high_bytes)}"
    if device.kind == "cpu":
        lines = [
            ("tensors", f"{format_bytes(peak.allocated_bytes)}, with the allocator's slack {interval}"),
            ("process", f"{host} besides"),
        ]
    else:
        lines = [
            ("allocated", f"{format_bytes(peak.allocated_bytes)} (torch.cuda.max_memory_allocated)"),
            ("reserved", f"{format_bytes(peak.reserved_bytes)} (torch.cuda.max_memory_reserved)"),
            ("on card", f"{format_bytes(peak.device_bytes)} (nvidia-smi), {interval}"),
            ("RAM", _host_words(estimate, device)),
        ]
    lines += [
        ("limit", _limit_words(verdict, device)),
        *(("", note) for note in device.notes),
        ("parameters", _parameter_words(estimate)),
        ("basis", f"{estimate.basis}: {BASES[estimate.basis]}"),
    ]
    print_pairs(console, lines)
    if estimate.reasons:
        print_heading(console, "why an interval:")
        print_points(console, estimate.reasons)
    if estimate.notes:
        print_heading(console, "note:", "bold yellow")
        print_points(console, estimate.notes)


BASES = {
    "formula": "derived from what the code allocates",
    "trace": "the real training step, traced without a GPU",
    "measured": "measured on this machine",
}


def _host_words(estimate: Estimate, device: Device) -> str:
    host = estimate.host
    pinned = f", {format_bytes(host.pinned_bytes)} of it pinned" if host.pinned_bytes else ""
    there = f" of {format_bytes(device.host_memory_bytes)}" if device.host_memory_bytes else ""
    return f"{format_bytes(host.peak_bytes)}{there}{pinned}"


def _limit_words(verdict: Verdict, device: Device) -> str:
    """What may be used, and how that is known; on a processor the process itself comes out of the same RAM."""
    basis = device.limit_basis
    if basis.startswith("usable on an idle card"):  # with sources, which `llamamath profiles` shows
        basis = basis.partition(" (")[0]
    whole = f"{device.name}: {format_bytes(device.limit_bytes)}, {basis}"
    if verdict.limit_bytes == device.limit_bytes:
        return whole
    return f"{format_bytes(verdict.limit_bytes)} for tensors, of {whole}" if device.kind == "cpu" else format_bytes(verdict.limit_bytes)


def _parameter_words(estimate: Estimate) -> str:
    share = estimate.trainable_parameters / estimate.total_parameters
    return f"{format_count(estimate.total_parameters)}, {estimate.trainable_parameters:,} of them trained ({share:.2%})"


def print_suggestions(console: Console, suggestions: Sequence[Suggestion], not_runnable: Sequence[str] = ()) -> None:
    """What to change, the mildest first, with what each saves and costs. What this version cannot run yet says so.

    not_runnable: what of the job itself that is; then it is said once, not of every suggestion.
    """
    if not_runnable:
        what = ", ".join(not_runnable)
        print_paragraph(console, f"planned only: this version cannot run {what} yet, whatever else is changed", style="yellow")
    if not suggestions:
        print_paragraph(console, "no change of this job that is known here makes it smaller")
        return
    print_heading(console, "what would help:")
    for number, suggestion in enumerate(suggestions, 1):
        line = Text.assemble((suggestion.change, "bold"), f": saves {format_bytes(suggestion.saves_bytes)}")
        line.append(", then it fits" if suggestion.fits else ", not enough alone", style="green" if suggestion.fits else "")
        if suggestion.cost:
            line.append(f"; {suggestion.cost}")
        if not suggestion.runnable and not not_runnable:
            line.append(" [planned only: this version cannot run it yet]", style="yellow")
        print_hanging(console, Text(f"  {number}. "), line)
