"""The event stream of a trace: every allocation and release of device memory, in order, with what each tensor was for.

One column of integers: a positive entry allocates that many bytes (its id is its ordinal, from 1), a negative entry frees the id. Marks
say where a phase begins. Pure Python: the parent process reads what the worker wrote.
"""

from __future__ import annotations

import base64
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

GRANULE = 512
"""torch's caching allocator rounds every size up to a multiple of this (c10/cuda/CUDACachingAllocator.h kMinBlockSize)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a tensor was: its component (planner.estimate.COMPONENTS), the operation that made it, and the line of library code."""

    component: str
    operation: str
    where: str
    shape: str

    @property
    def text(self) -> str:
        """For people: operation, shape, place."""
        return " ".join(part for part in (self.operation, self.shape, f"at {self.where}" if self.where else "") if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """From entry `position` of the stream on, the run is in `phase`; `detail` says which part of it."""

    position: int
    phase: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """All events of a run. `label_of[id - 1]` is the index in `labels` of the tensor with that id."""

    entries: array[int]
    marks: tuple[Mark, ...]
    labels: tuple[Label, ...]
    label_of: array[int]

    def __len__(self) -> int:
        return len(self.entries)

    def label(self, identity: int) -> Label:
        """The label of the tensor with that id."""
        return self.labels[self.label_of[identity - 1]]

    def events(self) -> Iterator[tuple[str, int, int]]:
        """("alloc", id, bytes) and ("free", id, bytes), in order."""
        sizes = array("q")
        for entry in self.entries:
            if entry > 0:
                sizes.append(entry)
                yield "alloc", len(sizes), entry
            else:
                yield "free", -entry, sizes[-entry - 1]

    def phases(self) -> Iterator[tuple[int, int, Mark]]:
        """(first entry, entry after the last, mark) of every stretch between two marks."""
        for index, mark in enumerate(self.marks):
            end = self.marks[index + 1].position if index + 1 < len(self.marks) else len(self.entries)
            yield mark.position, end, mark

    def to_json(self) -> dict[str, Any]:
        """Plain values; the columns are little-endian integers, deflated, in base 64."""
        return {
            "entries": _pack(self.entries),
            "marks": [[mark.position, mark.phase, mark.detail] for mark in self.marks],
            "labels": [[label.component, label.operation, label.where, label.shape] for label in self.labels],
            "label_of": _pack(self.label_of),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Stream:
        """The stream written by `to_json`. Raises ValueError, KeyError or TypeError for anything else."""
        labels = tuple(Label(component=c, operation=o, where=w, shape=s) for c, o, w, s in values["labels"])
        stream = cls(
            entries=_unpack(values["entries"], "q"),
            marks=tuple(Mark(position=position, phase=phase, detail=detail) for position, phase, detail in values["marks"]),
            labels=labels,
            label_of=_unpack(values["label_of"], "i"),
        )
        allocations = sum(entry > 0 for entry in stream.entries)
        if allocations != len(stream.label_of) or any(not 0 <= index < len(labels) for index in set(stream.label_of)):
            raise ValueError("the columns of the stream do not belong together")
        return stream


def rounded(size: int) -> int:
    """`size` bytes as the caching allocator hands them out."""
    return max(GRANULE, -(-size // GRANULE) * GRANULE)


def _pack(column: array[int]) -> str:
    copy = array(column.typecode, column)
    if array("H", [1]).tobytes() != b"\x01\x00":  # pragma: no cover - big-endian machines
        copy.byteswap()
    return base64.b64encode(zlib.compress(copy.tobytes(), 6)).decode("ascii")


def _unpack(text: str, typecode: str) -> array[int]:
    column: array[int] = array(typecode)
    try:
        column.frombytes(zlib.decompress(base64.b64decode(text, validate=True)))
    except zlib.error as error:
        raise ValueError(f"a column cannot be inflated: {error}") from error
    if array("H", [1]).tobytes() != b"\x01\x00":  # pragma: no cover - big-endian machines
        column.byteswap()
    return column
