"""`llamamath accuracy`: predictions against published measurements."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Annotated, Optional

import typer

REPORT = Path("docs", "accuracy.md")


def accuracy(
    runs: Annotated[
        Optional[Path],  # noqa: UP045  (typer reads it at run time)
        typer.Argument(
            help="JSON lines of published runs. Default: memory/published_runs.jsonl in $LLAMAMATH_SHARED_DATA or ../shared/data."
        ),
    ] = None,
    output: Annotated[Optional[Path], typer.Option("--output", "-o", help="Write the whole report, as Markdown, to this file.")] = None,  # noqa: UP045
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document with every row instead of the summary.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 if the report in docs/accuracy.md (or --output) is out of date.")] = False,
) -> None:
    """Compare the planner's predictions with published memory figures, row by row."""
    from llamamath.files import write_atomically
    from llamamath.planner.accuracy.document import to_json
    from llamamath.planner.accuracy.report import to_markdown, without_date
    from llamamath.planner.accuracy.run import accuracy_of, default_runs

    path = runs or default_runs()
    if check and runs is None and not path.is_file():
        typer.echo(f"not checked: no published runs at {path}; set LLAMAMATH_SHARED_DATA or name the file", err=True)
        return
    result = accuracy_of(path)
    report = to_markdown(result, date=datetime.date.today().isoformat(), source=path.name)
    if check:
        stored = output or REPORT
        text = stored.read_text(encoding="utf-8") if stored.is_file() else ""
        if without_date(text) != without_date(report):
            typer.echo(f"{stored} is out of date: run `llamamath accuracy {path.name} -o {stored}`", err=True)
            raise typer.Exit(1)
        typer.echo(f"{stored} is up to date", err=True)
        return
    if output is not None:
        write_atomically(output, report)
    if json_output:
        typer.echo(json.dumps(to_json(result), ensure_ascii=False, allow_nan=False))
        return
    _print_summary(result)
    if output is not None:
        typer.echo(f"wrote {output}", err=True)


def _print_summary(result: object) -> None:
    from rich.console import Console
    from rich.table import Table

    from llamamath.planner.accuracy.compare import Accuracy
    from llamamath.planner.accuracy.jobs import GROUPS
    from llamamath.planner.accuracy.markdown import percent, signed

    assert isinstance(result, Accuracy)
    table = Table(title="Predicted against measured", caption="error = predicted / measured - 1; under = predicted too low")
    for column in ("group", "rows", "mean", "median", "worst", "under", "above high"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for group, summary in result.groups.items():
        figures = [percent(summary.mean_error, 1), percent(summary.median_error, 1), signed(summary.worst_error)]
        shares = [percent(summary.share_under), percent(summary.share_above_high)]
        table.add_row(f"{group}  {GROUPS[group]}", str(summary.rows), *figures, *shares)
    console = Console()
    console.print(table)
    wrong = sum(not verdict.right for verdict in result.verdicts)
    console.print(
        f"{len(result.comparisons)} of {result.total} runs compared, {len(result.misses)} more than 15 % off; {len(result.verdicts)} "
        f"verdicts, {wrong} wrong; {len(result.excluded)} runs left out, {result.malformed} lines unreadable"
    )
