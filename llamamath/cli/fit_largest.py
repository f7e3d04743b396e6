"""`fit --max`: the longest context, the largest micro-batch or the largest group that fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamamath.cli.layout import print_paragraph
from llamamath.cli.output import people, print_json
from llamamath.planner.contract import SCHEMA_VERSION, device_document, fit_document

if TYPE_CHECKING:
    from llamamath.cli.job_sources import SourcedJob
    from llamamath.planner.budget import Budget
    from llamamath.planner.device import Device
    from llamamath.planner.fit.limits import LargestResult

UNITS = {"context": "tokens of context", "batch": "sequences per micro-batch", "group": "completions per prompt"}


def fit_largest(what: str, sourced: SourcedJob, device: Device, budget: Budget, *, json_output: bool) -> int:
    """Find and show it. Exit code 1 if not even the smallest fits."""
    from llamamath.planner.fit.limits import largest
    from llamamath.planner.model_files.config_file import resolve_model

    architecture = resolve_model(sourced.job.model)
    found = largest(what, sourced.job, architecture, device, budget)
    if json_output:
        print_json(_document(found, device, budget))
    else:
        _print(found, sourced, device, budget)
    return 0 if found.value else 1


def _document(found: LargestResult, device: Device, budget: Budget) -> dict[str, object]:
    from llamamath.planner.fit.fitting import verdict_on

    fit = None
    if found.job is not None and found.estimate is not None:
        fit = fit_document(found.job, found.estimate, verdict_on(found.estimate, device, budget))
    return {
        "schema_version": SCHEMA_VERSION,
        "what": found.what,
        "value": found.value,
        "capped_by": found.capped_by,
        "next_value": found.next_value,
        "next_value_fails_by_bytes": found.next_value_fails_by_bytes,
        "device": device_document(device),
        "fit": fit,
    }


def _print(found: LargestResult, sourced: SourcedJob, device: Device, budget: Budget) -> None:
    from rich.text import Text

    from llamamath.cli.show_job import title_of
    from llamamath.cli.show_memory import print_memory
    from llamamath.planner.fit.fitting import verdict_on
    from llamamath.units import format_bytes

    console = people()
    print_paragraph(console, f"{title_of(found.job or sourced.job)} on {device.name}", style="bold")
    if found.job is None or found.estimate is None:
        short = "" if found.next_value_fails_by_bytes is None else f": {format_bytes(found.next_value_fails_by_bytes)} too much"
        print_paragraph(console, Text.assemble(("NOTHING FITS", "bold red"), f", not even the smallest {found.what}{short}"))
        return
    words = Text.assemble((f"{found.value:,}", "bold green"), f" {UNITS[found.what]} fit")
    if found.capped_by:
        words.append(f"; {found.capped_by} allows no more, memory would")
    elif found.next_value is not None and found.next_value_fails_by_bytes is not None:
        words.append(f"; {found.next_value:,} would take {format_bytes(found.next_value_fails_by_bytes)} too much")
    print_paragraph(console, words)
    console.print()
    print_memory(console, found.estimate, verdict_on(found.estimate, device, budget), device)
