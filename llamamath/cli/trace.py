"""`llamamath trace`: the real step on fake tensors, as a picture or as PyTorch's memory snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

PAGES, SNAPSHOTS = (".html", ".htm"), (".pickle", ".pkl")


def trace(
    job: Annotated[
        Path, typer.Argument(metavar="JOB", help="A job file: YAML, or JSON if its name ends in .json; - reads standard input.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help=".html: the timeline as a page; .pickle: a snapshot for https://pytorch.org/memory_viz."
        ),
    ],
    expandable: Annotated[
        bool,
        typer.Option("--expandable/--no-expandable", help="The snapshot's allocator: expandable_segments, as llamamath launches training."),
    ] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Trace again even if the result is cached.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON document.")] = False,
) -> None:
    """Run the job's real training step on fake tensors, without a GPU, and show its memory over time."""
    from llamamath.errors import FieldError
    from llamamath.planner.job_files.job_file import load_job
    from llamamath.planner.model_files.config_file import resolve_model
    from llamamath.planner.trace.client import trace as run_trace

    suffix = output.suffix.lower()
    if suffix not in PAGES + SNAPSHOTS:
        raise FieldError("--output", str(output), f"a file ending in {', '.join(PAGES + SNAPSHOTS)}")
    parsed = load_job(job)
    architecture = resolve_model(parsed.model)
    with phases_on_stderr() as progress:
        result = run_trace(parsed, architecture, use_cache=not fresh, progress=progress)
    if suffix in PAGES:
        from llamamath.files import write_atomically
        from llamamath.planner.trace.timeline import timeline_html

        write_atomically(output, timeline_html(result, parsed, architecture))
    else:
        _write_snapshot(output, result, expandable)
    _print(result, output, json_output)


class phases_on_stderr:  # noqa: N801 - used as a function
    """A line that names the running phase, on an interactive stderr only."""

    def __enter__(self) -> Any:
        from rich.console import Console

        console = Console(stderr=True)
        self._status = console.status("starting") if console.is_terminal else None
        if self._status is not None:
            self._status.start()
        return self._show

    def _show(self, phase: str) -> None:
        if self._status is not None:
            self._status.update(f"tracing: {phase}")

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


def _write_snapshot(output: Path, result: Any, expandable: bool) -> None:
    from llamamath.planner.allocator.caching import CachingAllocator
    from llamamath.planner.allocator.recorder import Recorder
    from llamamath.planner.allocator.replay import replay_on
    from llamamath.planner.allocator.snapshot import write_snapshot
    from llamamath.planner.trace.replaying import events_of

    allocator = CachingAllocator(expandable=expandable, recorder=Recorder())
    replay_on(allocator, events_of(result.stream, growth=False))
    write_snapshot(output, allocator)


def _print(result: Any, output: Path, json_output: bool) -> None:
    import json

    from llamamath.units import format_bytes

    if json_output:
        phases = {
            instant.phase: {f"{name}_bytes": size for name, size in instant.components.items()} | {"total_bytes": instant.allocated_bytes}
            for instant in result.instants
        }
        document = {
            "schema_version": 1,
            "basis": "trace",
            "file": str(output),
            "peak": {"phase": result.peak.phase, "allocated_bytes": result.allocated_bytes},
            "phases": phases,
            "unseen": [{"name": part.name, "bytes": part.bytes, "source": part.source} for part in result.unseen],
            "versions": result.versions,
            "from_cache": result.from_cache,
            "notes": list(result.notes),
        }
        typer.echo(json.dumps(document, allow_nan=False))
        return
    for instant in result.instants:
        marker = "  <- peak" if instant is result.peak else ""
        typer.echo(f"{instant.phase:10s} {format_bytes(instant.allocated_bytes):>10s}  {instant.detail}{marker}")
    typer.echo(f"max_memory_allocated {format_bytes(result.allocated_bytes)}, of it unseen: {format_bytes(result.unseen_allocated_bytes)}")
    source = "read from the cache" if result.from_cache else f"{result.operations:,} operations in {result.seconds:.1f} s"
    typer.echo(f"wrote {output} ({source})", err=True)
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
