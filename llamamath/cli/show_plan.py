"""A search's answer for people: the chosen job, its memory, time and money, what lies beside it, and what was rejected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llamamath.cli.layout import print_columns, print_hanging, print_heading, print_pairs, print_paragraph, print_points
from llamamath.cli.show_job import changes_of, print_origins, title_of
from llamamath.cli.show_memory import print_memory
from llamamath.cli.show_verdict import print_figures, print_suggestions, print_verdict
from llamamath.planner.budget import host_limit
from llamamath.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from llamamath.planner.budget import Budget
    from llamamath.planner.device import Device
    from llamamath.planner.search.result import Candidate, SearchResult
    from llamamath.planner.throughput.step_time import RunCost

MOST_REJECTED = 12


def print_plan(console: Console, result: SearchResult, device: Device, budget: Budget) -> None:
    """Everything about one search: the plan, or what comes nearest to one."""
    if result.chosen is None:
        _print_nothing(console, result, device, budget)
        return
    chosen = result.chosen
    print_paragraph(console, f"{title_of(chosen.job, chosen.architecture.name)} on {device.name}", style="bold")
    print_verdict(console, chosen.estimate, chosen.verdict, device, host_limit(device, budget))
    for note in chosen.notes:
        print_paragraph(console, note, style="yellow")
    console.print()
    print_memory(console, chosen.estimate, chosen.verdict, device)
    console.print()
    print_figures(console, chosen.estimate, chosen.verdict, device)
    _print_time(console, result, chosen, device)
    print_pairs(console, [("held back by", _binding(result))])
    print_origins(console, chosen.job, result.sources)
    _print_neighbours(console, result, chosen)
    _print_rejected(console, result)


def _print_time(console: Console, result: SearchResult, chosen: Candidate, device: Device) -> None:
    print_heading(console, "time and money:")
    time, cost = chosen.time, chosen.cost
    if time is None:
        slow = (
            ["expect a processor to take far longer than any GPU; --objective cost plans the smallest model"]
            if device.kind == "cpu"
            else []
        )
        print_points(console, [*(result.notes or ("unknown: this device's rates are",)), *slow])
        return
    step = f"{format_seconds(time.expected_seconds)} ({format_seconds(time.low_seconds)} to {format_seconds(time.high_seconds)})"
    pairs = [("one step", f"{step}: {time.samples_per_step:,} samples, {time.tokens_per_step:,.0f} tokens")]
    shares = [f"{phase.name} {phase.expected_seconds / time.expected_seconds:.0%}" for phase in time.phases]
    pairs.append(("of which", ", ".join(shares)))
    pairs.append(("the run", _run_words(cost)))
    pairs.append(("basis", time.basis))
    print_pairs(console, pairs)
    print_points(console, (*time.notes, *result.notes))


def _run_words(cost: RunCost | None) -> str:
    if cost is None:
        return "unknown without the number of samples: --samples"
    low, high = format_seconds(cost.low_hours * 3600), format_seconds(cost.high_hours * 3600)
    words = f"{cost.num_steps:,} steps, {format_seconds(cost.expected_hours * 3600)} ({low} to {high})"
    if cost.low_usd is None or cost.high_usd is None:
        return f"{words}; price of renting unknown"
    return f"{words}; {cost.low_usd:,.2f} to {cost.high_usd:,.2f} USD rented"


def _binding(result: SearchResult) -> str:
    words = "nothing: no faster job is known" if result.binding == "nothing" else result.binding
    return f"{words}; {result.evaluated:,} jobs compared in {result.seconds:.2f} s, by {result.ranked_by}"


def _print_neighbours(console: Console, result: SearchResult, chosen: Candidate) -> None:
    if not result.neighbours:
        return
    print_heading(console, "beside it:")
    rows: list[tuple[str | Text, ...]] = [_row("this plan", chosen, "")]
    for neighbour in result.neighbours:
        rows.append(_row(neighbour.label, neighbour.candidate, changes_of(chosen.job, neighbour.candidate.job)))
    print_columns(console, ("", "at most", "one step", "what differs"), rows, right="lrrl", indent=2)


def _row(label: str, candidate: Candidate, changes: str) -> tuple[str | Text, ...]:
    seconds = "unknown" if candidate.time is None else format_seconds(candidate.time.expected_seconds)
    return Text(label, style="bold"), format_bytes(candidate.estimate.peak.high_bytes), seconds, changes


def _print_rejected(console: Console, result: SearchResult) -> None:
    if not result.rejected:
        return
    print_heading(console, "not chosen:")
    for item in result.rejected[:MOST_REJECTED]:
        print_hanging(console, Text("  - "), Text.assemble((item.what, "bold"), f": {item.reason}"))
    more = len(result.rejected) - MOST_REJECTED
    if more > 0:
        print_points(console, [f"and {more} more, all in --json"])


def _print_nothing(console: Console, result: SearchResult, device: Device, budget: Budget) -> None:
    """What misses by least, by how much, and what would help."""
    from llamamath.planner.fit.fitting import not_runnable
    from llamamath.planner.fit.suggestions import suggest

    nearest = result.nearest
    short = f": {format_bytes(result.shortfall_bytes)} too much at the least" if result.shortfall_bytes > 0 else ""
    print_paragraph(console, Text.assemble(("NOTHING FITS", "bold red"), f" {device.name}{short} (held back by {result.binding})"))
    print_points(console, result.notes)
    if nearest is None:
        _print_rejected(console, result)
        return
    print_heading(console, "what comes nearest:")
    print_paragraph(console, title_of(nearest.job, nearest.architecture.name), indent=2, style="bold")
    print_verdict(console, nearest.estimate, nearest.verdict, device, host_limit(device, budget))
    console.print()
    print_memory(console, nearest.estimate, nearest.verdict, device)
    console.print()
    if result.shortfall_bytes <= 0:  # memory is not what is short
        _print_time(console, result, nearest, device)
        _print_rejected(console, result)
        return
    suggestions = suggest(nearest.job, nearest.architecture, device, budget)
    print_suggestions(console, suggestions, not_runnable(nearest.job))
    _print_rejected(console, result)
