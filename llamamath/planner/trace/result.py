"""What the worker answers, as values: the event stream, the worst instant of every phase, and what a trace cannot see."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llamamath.planner.memory.estimating import workspace_bytes
from llamamath.planner.trace.accounting import Instant, worst_instants
from llamamath.planner.trace.stream import Stream
from llamamath.planner.trace.versions import TRACE_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """Device memory that no traced operation allocates. `in_allocator`: torch's statistics count it."""

    name: str
    bytes: int
    in_allocator: bool
    source: str


def cublas_workspaces(capability: tuple[int, int] | None) -> Unseen:
    """cuBLAS takes its workspaces from the caching allocator, but below the dispatcher."""
    return Unseen(
        name="cuBLAS workspaces",
        bytes=workspace_bytes(capability),
        in_allocator=True,
        source="two handles (forward's thread, autograd's) with torch's default CUBLAS_WORKSPACE_CONFIG; seen on A100s in published runs",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceResult:
    """One traced run. `paged_bytes`: optimizer state in managed memory, outside the caching allocator."""

    stream: Stream
    instants: tuple[Instant, ...]
    unseen: tuple[Unseen, ...]
    versions: dict[str, str]
    trainable_parameters: int
    total_parameters: int
    paged_bytes: int = 0
    notes: tuple[str, ...] = ()
    operations: int = 0
    seconds: float = 0.0
    canaries: tuple[str, ...] = ()
    """Names of the checks of our patches that passed before this trace."""
    from_cache: bool = False

    @property
    def unseen_allocated_bytes(self) -> int:
        """What `max_memory_allocated` counts although no traced operation allocated it."""
        return sum(part.bytes for part in self.unseen if part.in_allocator)

    @property
    def peak(self) -> Instant:
        """The worst instant of the run (without what is unseen)."""
        return max(self.instants, key=lambda instant: instant.allocated_bytes)

    @property
    def allocated_bytes(self) -> int:
        """`max_memory_allocated` of the run."""
        return self.peak.allocated_bytes + self.unseen_allocated_bytes

    def instant(self, phase: str) -> Instant | None:
        """The worst instant of that phase, if the run has it."""
        return next((instant for instant in self.instants if instant.phase == phase), None)


def result_to_json(result: TraceResult) -> str:
    """One JSON document."""
    return json.dumps(
        {
            "trace_version": TRACE_VERSION,
            "versions": result.versions,
            "stream": result.stream.to_json(),
            "unseen": [[part.name, part.bytes, part.in_allocator, part.source] for part in result.unseen],
            "trainable_parameters": result.trainable_parameters,
            "total_parameters": result.total_parameters,
            "paged_bytes": result.paged_bytes,
            "notes": list(result.notes),
            "operations": result.operations,
            "seconds": result.seconds,
            "canaries": list(result.canaries),
        }
    )


def result_from_json(text: str, *, from_cache: bool = False) -> TraceResult:
    """The result written by `result_to_json`. Raises ValueError for anything else (another version of ours included)."""
    try:
        values: dict[str, Any] = json.loads(text)
        if values["trace_version"] != TRACE_VERSION:
            raise ValueError(f"written by trace version {values['trace_version']}, this is {TRACE_VERSION}")
        stream = Stream.from_json(values["stream"])
        return TraceResult(
            stream=stream,
            instants=worst_instants(stream),
            unseen=tuple(Unseen(name=n, bytes=b, in_allocator=a, source=s) for n, b, a, s in values["unseen"]),
            versions=dict(values["versions"]),
            trainable_parameters=int(values["trainable_parameters"]),
            total_parameters=int(values["total_parameters"]),
            paged_bytes=int(values["paged_bytes"]),
            notes=tuple(values["notes"]),
            operations=int(values["operations"]),
            seconds=float(values["seconds"]),
            canaries=tuple(values["canaries"]),
            from_cache=from_cache,
        )
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"not a trace result: {type(error).__name__}: {error}") from error
