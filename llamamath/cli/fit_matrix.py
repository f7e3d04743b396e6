"""`fit` for several models or several GPUs: one table, the longest context of each pair and, with GRPO, the largest group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from llamamath.cli.layout import GAP, print_columns, print_heading, print_paragraph, print_points
from llamamath.cli.output import people, print_json
from llamamath.errors import UsageError
from llamamath.planner.contract import SCHEMA_VERSION, device_document

if TYPE_CHECKING:
    from rich.console import Console

    from llamamath.cli.job_sources import Layer
    from llamamath.planner.budget import Budget
    from llamamath.planner.device import Device
    from llamamath.planner.fit.limits import MatrixCell, MatrixRow
    from llamamath.planner.job import Job

DEFAULT_MODELS = (
    "meta-llama/Llama-3.2-1B-Instruct",
    "Qwen/Qwen2.5-Math-1.5B",
    "meta-llama/Llama-3.2-3B-Instruct",
    "Qwen/Qwen2.5-7B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "Qwen/Qwen2.5-14B-Instruct",
    "meta-llama/Llama-3.2-90B-Vision-Instruct",
)
DEFAULT_GPUS = ("RTX 4060", "RTX 3060 12GB", "RTX 4060 Ti 16GB", "RTX 3090")
"""Common cards of 8, 12, 16 and 24 GB."""


def fit_matrix(
    models: Sequence[str], job: str | None, gpus: Sequence[str], flags: Layer, budget: Budget, *, use_total: bool, json_output: bool
) -> int:
    """Judge every model on every GPU. Exit code 1 only if nothing fits anywhere."""
    from llamamath.cli.job_sources import Layer, combine, file_layer
    from llamamath.planner.fit.limits import matrix
    from llamamath.planner.model_files.config_file import resolve_model

    devices = _devices(gpus, budget, use_total)
    layers = [flags, *([file_layer(job)] if job else [])]
    names = tuple(models) or (() if job else DEFAULT_MODELS)
    template = combine([*layers[:1], *([Layer(origin="argument", values={"model": names[0]})] if names else []), *layers[1:]]).job
    names = names or (template.model,)
    rows = matrix([(name, resolve_model(name)) for name in names], devices, template, budget)
    if json_output:
        print_json(_document(rows, devices, template))
    else:
        _print(rows, devices, template)
    return 0 if any(cell.fits for row in rows for cell in row.cells) else 1


def _devices(gpus: Sequence[str], budget: Budget, use_total: bool) -> list[Device]:
    """The GPUs named; else the one that is here, if there is one, and common cards."""
    from llamamath.planner.probe.devices import device_for

    def find(name: str) -> Device:
        return device_for(name, use_total=use_total, vram_limit_bytes=budget.vram_bytes)[0]

    if gpus:
        found = [find(name) for name in gpus]
        if any(device.kind == "cpu" for device in found) and len(found) > 1:
            raise UsageError("a processor and GPUs cannot stand in one table", "judge the processor by itself, with --gpu cpu")
        return found
    here = find("auto")
    return ([here] if here.kind == "cuda" else []) + [find(name) for name in DEFAULT_GPUS]


def _document(rows: Sequence[MatrixRow], devices: Sequence[Device], template: Job) -> dict[str, object]:
    from llamamath.planner.job_files.job_text import job_to_dict

    def cell(found: MatrixCell) -> dict[str, object]:
        return {
            "device": found.device,
            "fits": found.fits,
            "shortfall_bytes": found.shortfall_bytes,
            "largest_context": found.largest_context,
            "context_is_capped": found.context_is_capped,
            "largest_group": found.largest_group,
        }

    return {
        "schema_version": SCHEMA_VERSION,
        "template": {name: value for name, value in job_to_dict(template).items() if name != "model"},
        "devices": [device_document(device) for device in devices],
        "rows": [{"model": row.model, "cells": [cell(found) for found in row.cells]} for row in rows],
    }


def _print(rows: Sequence[MatrixRow], devices: Sequence[Device], template: Job) -> None:
    from llamamath.cli.show_job import title_of

    console = people()
    print_paragraph(console, title_of(template).partition(", ")[2], style="bold")
    heads = [Text(_short(device.name), style="bold") for device in devices]
    usable = [Text(f"{device.limit_bytes / 2**30:.1f} GiB", style="dim") for device in devices]
    names = [Text("  "), Text("  usable"), *(Text(f"  {_model(row.model)}") for row in rows)]
    print_heading(console, "longest context in tokens, or what this job is short of:", "")
    contexts = [[_context(cell) for cell in row.cells] for row in rows]
    _print_wide(console, names, [[head, size] for head, size in zip(heads, usable, strict=True)], contexts)
    if template.method == "grpo":
        print_heading(console, "largest group at this job's lengths:", "")
        _print_wide(console, [names[0], *names[2:]], [[head] for head in heads], [[_group(cell) for cell in row.cells] for row in rows])
    points = ["* as long as the model's positions reach; memory would allow more"] if _capped(rows) else []
    print_points(console, [*points, "`llamamath fit MODEL --gpu GPU` shows one of them in full"], indent=0)


def _print_wide(console: Console, names: list[Text], heads: list[list[Text]], rows: list[list[Text]]) -> None:
    """A table with as many GPUs beside each other as the terminal is wide for, and the others below."""
    columns = [[*head, *(row[number] for row in rows)] for number, head in enumerate(heads)]
    room = console.width - max(name.cell_len for name in names)
    while columns:
        taken = 0
        for used, column in enumerate(columns, 1):
            taken += max(cell.cell_len for cell in column) + GAP
            if taken > room and used > 1:
                used -= 1
                break
        shown, columns = columns[:used], columns[used:]
        table = [[name, *cells] for name, *cells in zip(names, *shown, strict=True)]
        print_columns(console, [""] * (used + 1), table, right="l" + "r" * used)


def _capped(rows: Sequence[MatrixRow]) -> bool:
    return any(cell.context_is_capped and cell.largest_context for row in rows for cell in row.cells)


def _short(name: str) -> str:
    """`NVIDIA GeForce RTX 3090` -> `RTX 3090`: columns are narrow."""
    return name.removeprefix("NVIDIA ").removeprefix("GeForce ")


def _model(name: str) -> str:
    return (name.rstrip("/").rpartition("/")[2] or name).removesuffix("-Instruct")


def _context(cell: MatrixCell) -> Text:
    if cell.fits:
        return Text(f"{cell.largest_context:,}{'*' if cell.context_is_capped else ''}", style="green")
    short = f"-{cell.shortfall_bytes / 2**30:,.1f} GiB"
    return Text(f"{cell.largest_context:,} ({short})" if cell.largest_context else short, style="yellow" if cell.largest_context else "red")


def _group(cell: MatrixCell) -> Text:
    return Text(f"{cell.largest_group:,}", style="green") if cell.largest_group else Text("-", style="red")
