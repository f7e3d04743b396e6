"""Reading published measurements of other people's training runs: one JSON object per line, as their sources state them.

Every field but `id` may be missing. Sizes become bytes, words stay words; what they mean is decided in `jobs.py`. A line that
cannot be read spoils only itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llamamath.errors import UsageError, shorten
from llamamath.units import GIB, MIB

SCHEMA_HINT = (
    "one JSON object per line with id, model, gpu_count, framework, method, quant, dtype, lora_rank, lora_targets, micro_batch, seq_len, "
    "seq_len_kind, grad_checkpointing, optimizer, measured_bytes, measure and oom"
)
"""What a usable line holds, for people."""

_UNITS = {"bytes": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "mib": MIB, "gib": GIB}
_LARGEST = 2**60


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRun:
    """One published run. Text is as published; None or empty means that the source does not say."""

    id: str
    source: str = ""
    date: str = ""
    model: str | None = None
    gpu: str | None = None
    gpu_count: int | None = None
    capacity_bytes: int | None = None
    framework: str = ""
    method: str = ""
    quant: str | None = None
    dtype: str | None = None
    lora_rank: int | None = None
    lora_targets: str | tuple[str, ...] | None = None
    trainable_params: int | None = None
    micro_batch: int | None = None
    grad_accum: int | None = None
    seq_len: int | None = None
    seq_len_kind: str = ""
    num_generations: int | None = None
    prompt_len: int | None = None
    completion_len: int | None = None
    grad_checkpointing: bool | str | None = None
    optimizer: str | None = None
    attn: str | None = None
    flags: Mapping[str, object] = field(default_factory=dict)
    measured_bytes: int | None = None
    measure: str = ""
    oom: bool = False
    extra: Mapping[str, object] = field(default_factory=dict)
    trust: str = ""
    note: str = ""

    def flag(self, name: str) -> bool:
        """True if the run says it used the option `name` (`true`, or a non-empty description of it)."""
        value = self.flags.get(name)
        return value.strip().lower() not in ("", "false", "none", "no") if isinstance(value, str) else bool(value)

    @property
    def nvidia_smi_bytes(self) -> int | None:
        """nvidia-smi's peak, where the source gives it beside its main figure."""
        value = self.extra.get("nvidia_smi_peak_MiB")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST / MIB:
            return None
        return round(value * MIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """A line that is not a published run, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRuns:
    """What a file held."""

    runs: tuple[PublishedRun, ...]
    malformed: tuple[Malformed, ...]


def read_runs(path: Path) -> PublishedRuns:
    """The runs in a JSON-lines file. Raises UsageError if there is no such file or it cannot be read."""
    try:
        if not path.is_file():
            raise UsageError(
                f"{path}: no such file of published runs",
                f"give a file with {SCHEMA_HINT}; the project's own figures were made from memory/published_runs.jsonl of its shared data, "
                "which is not part of the repository: point LLAMAMATH_SHARED_DATA at a copy of that data, or name the file",
            )
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})", "check the path and its permissions") from error
    return parse_runs(data.decode("utf-8", errors="replace").split("\n"))


def parse_runs(lines: Iterable[str]) -> PublishedRuns:
    """The runs in `lines`, in order. Blank lines are skipped; lines that are not runs, and ids seen before, are counted apart."""
    runs: list[PublishedRun] = []
    malformed: list[Malformed] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip("\ufeff \t\r"):
            continue
        try:
            run = parse_run(json.loads(line.lstrip("\ufeff")))
        except (ValueError, RecursionError) as error:
            malformed.append(Malformed(line=number, reason=shorten(str(error) or type(error).__name__, 120)))
            continue
        if run.id in seen:
            malformed.append(Malformed(line=number, reason=f"id {shorten(run.id, 60)!r} occurs twice"))
            continue
        seen.add(run.id)
        runs.append(run)
    return PublishedRuns(runs=tuple(runs), malformed=tuple(malformed))


def parse_run(value: object) -> PublishedRun:
    """One run from a parsed JSON value. Raises ValueError naming the field that has a wrong type or an impossible value."""
    if not isinstance(value, Mapping):
        raise ValueError(f"a {type(value).__name__}, not an object")
    row: Mapping[str, object] = value
    identity = row.get("id")
    if not isinstance(identity, str) or not identity.strip():
        raise ValueError("no id")
    capacity = _number(row.get("capacity_gib"), "capacity_gib")
    return PublishedRun(
        id=identity.strip(),
        source=_text(row, "source") or "",
        date=_text(row, "date") or "",
        model=_text(row, "model"),
        gpu=_text(row, "gpu"),
        gpu_count=_count(row, "gpu_count"),
        capacity_bytes=round(capacity * GIB) if capacity else None,
        framework=_text(row, "framework") or "",
        method=_text(row, "method") or "",
        quant=_text(row, "quant"),
        dtype=_text(row, "dtype"),
        lora_rank=_count(row, "lora_rank"),
        lora_targets=_targets(row.get("lora_targets")),
        trainable_params=_count(row, "trainable_params"),
        micro_batch=_count(row, "micro_batch"),
        grad_accum=_count(row, "grad_accum"),
        seq_len=_count(row, "seq_len"),
        seq_len_kind=_text(row, "seq_len_kind") or "",
        num_generations=_count(row, "num_generations"),
        prompt_len=_count(row, "prompt_len"),
        completion_len=_count(row, "completion_len"),
        grad_checkpointing=_checkpointing(row.get("grad_checkpointing")),
        optimizer=_text(row, "optimizer"),
        attn=_text(row, "attn"),
        flags=_object(row, "flags"),
        measured_bytes=_measured_bytes(row),
        measure=_text(row, "measure") or "",
        oom=row.get("oom") is True,
        extra=_object(row, "extra"),
        trust=_text(row, "trust") or "",
        note=_text(row, "note") or "",
    )


def _measured_bytes(row: Mapping[str, object]) -> int | None:
    """`measured_bytes`, else `measured` in its `unit`. None for a run that was out of memory or has no figure."""
    size = _number(row.get("measured_bytes"), "measured_bytes")
    if size is None:
        measured, unit = _number(row.get("measured"), "measured"), _text(row, "unit")
        if measured is None or row.get("oom") is True:
            return None
        if unit is None or unit.lower() not in _UNITS:
            raise ValueError(f"measured: the unit {unit!r} is not one of {', '.join(_UNITS)}")
        size = measured * _UNITS[unit.lower()]
    if not 0 < size < _LARGEST:
        raise ValueError(f"measured_bytes: {size!r} is not a size of memory")
    return round(size)


def _text(row: Mapping[str, object], name: str) -> str | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name}: {shorten(repr(value), 40)} is not text")
    return value.strip() or None


def _number(value: object, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
        raise ValueError(f"{name}: {shorten(repr(value), 40)} is not a number")
    return value


def _count(row: Mapping[str, object], name: str) -> int | None:
    value = row.get(name)
    if value is None:
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not isinstance(value, int | float) or not 0 <= value < _LARGEST:
        raise ValueError(f"{name}: {shorten(repr(value), 40)} is not a whole number")
    return int(value)


def _targets(value: object) -> str | tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
        return tuple(str(item) for item in value) or None
    raise ValueError(f"lora_targets: {shorten(repr(value), 40)} is neither text nor a list of names")


def _checkpointing(value: object) -> bool | str | None:
    if value is None or isinstance(value, bool | str):
        return value
    raise ValueError(f"grad_checkpointing: {shorten(repr(value), 40)} is neither true, false nor text")


def _object(row: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = row.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: {shorten(repr(value), 40)} is not an object")
    return value
