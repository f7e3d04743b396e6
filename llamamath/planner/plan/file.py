"""plan.yaml: a Plan as a file that a person can read and edit, and back to an equal Plan. `job:` is a job file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from llamamath.errors import FieldError, UnknownNameError, UsageError, closest_names, shorten
from llamamath.files import write_atomically
from llamamath.planner.budget import Budget
from llamamath.planner.estimate import PHASES
from llamamath.planner.job_files.job_fields import Reader, number, one_of, optional, text, whole_number
from llamamath.planner.job_files.job_file import parse_job
from llamamath.planner.job_files.job_text import dump_job, job_to_dict, yaml_value
from llamamath.planner.job_files.yaml_json import parse_json, parse_yaml, read_text
from llamamath.planner.plan.record import Plan, PlannedDevice, PlannedMemory, PlannedRun, PlannedTime
from llamamath.planner.search.result import Rejection
from llamamath.units import format_bytes, format_count, format_seconds

SCHEMA_VERSION = 1
_BYTES = whole_number(0, 2**60)
_COUNT = whole_number(0, 2**50)
_HOURS = optional(number(0, 1e12))
_SECONDS = number(0, 1e15)
_DATE = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}")
_MOST_ITEMS = 500
MOST_REJECTED = 64
"""Rejections kept in a file."""


def _date(field: str, value: Any) -> str:
    if isinstance(value, str) and _DATE.fullmatch(value):
        return value
    raise FieldError(field, value, "a date as YYYY-MM-DD")


_MEMORY: dict[str, Reader] = {
    "phase": one_of(PHASES),
    "allocated_bytes": _BYTES,
    "reserved_bytes": _BYTES,
    "device_bytes": _BYTES,
    "low_bytes": _BYTES,
    "high_bytes": _BYTES,
    "host_peak_bytes": _BYTES,
    "host_pinned_bytes": _BYTES,
    "trainable_parameters": _COUNT,
    "total_parameters": _COUNT,
    "basis": one_of(("formula", "trace", "measured")),
}
_TIME: dict[str, Reader] = {
    "low_seconds_per_step": _SECONDS,
    "expected_seconds_per_step": _SECONDS,
    "high_seconds_per_step": _SECONDS,
    "num_steps": optional(whole_number(1, 2**50)),
    "low_hours": _HOURS,
    "expected_hours": _HOURS,
    "high_hours": _HOURS,
    "low_usd": _HOURS,
    "high_usd": _HOURS,
    "basis": text,
}
_DEVICE: dict[str, Reader] = {
    "name": text,
    "kind": one_of(("cuda", "cpu")),
    "total_bytes": _BYTES,
    "limit_bytes": _BYTES,
    "limit_basis": text,
    "compute_capability": optional(text),
}
_RUN: dict[str, Reader] = {
    "recipe": optional(text),
    "stage": optional(text),
    "num_samples": optional(whole_number(1, 2**50)),
    "num_train_epochs": number(0, 1000),
}
_BUDGET: dict[str, Reader] = {
    "vram_bytes": optional(_BYTES),
    "ram_bytes": optional(_BYTES),
    "disk_bytes": optional(_BYTES),
    "hours": _HOURS,
    "cost_usd": _HOURS,
}
_REJECTED: dict[str, Reader] = {"what": text, "reason": text, "shortfall_bytes": optional(_BYTES)}
_SECTIONS = (
    "schema_version",
    "created",
    "job",
    "run",
    "memory",
    "time",
    "device",
    "budget",
    "binding",
    "notes",
    "sources",
    "rejected",
    "versions",
)
_OPTIONAL = {"time", "notes", "sources", "rejected", "versions", "budget"}

_COMMENTS = {
    "run": "how much is trained; the recipe's stage says with what learning rate, data and rewards",
    "memory": "as estimated when this was written; training estimates again and refuses a job that no longer fits",
    "time": "per optimizer step, and of the whole run; null where unknown",
    "device": "what the job was judged against",
    "budget": "null is no bound",
    "sources": "where each value of the job came from",
    "rejected": "what was not chosen, and why",
    "versions": "what was installed",
}


def plan_to_dict(plan: Plan) -> dict[str, object]:
    """Every field as plain JSON values, in the order of the file. `parse_plan` reads it back to an equal Plan."""
    return {
        "schema_version": SCHEMA_VERSION,
        "created": plan.created,
        "job": job_to_dict(plan.job),
        "run": _plain(plan.run),
        "memory": _plain(plan.memory),
        "time": None if plan.time is None else _plain(plan.time),
        "device": _plain(plan.device),
        "budget": _plain(plan.budget),
        "binding": plan.binding,
        "notes": list(plan.notes),
        "sources": dict(plan.sources),
        "rejected": [_plain(rejection) for rejection in plan.rejected],
        "versions": dict(plan.versions),
    }


def _plain(value: Any) -> dict[str, object]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def dump_plan(plan: Plan) -> str:
    """The plan as YAML, sizes in bytes with GiB in comments."""
    lines = [
        "# A plan of llamamath: `llamamath train` runs it. Edit `job` and `run` as you like; the rest says what was expected and why.",
        f"schema_version: {SCHEMA_VERSION}",
        f"created: {plan.created}",
        "job:",
        *(f"  {line}" for line in dump_job(plan.job).splitlines()),
    ]
    for name, value in plan_to_dict(plan).items():
        if name in ("schema_version", "created", "job"):
            continue
        lines += _section(name, value)
    return "\n".join(lines) + "\n"


def _section(name: str, value: object) -> list[str]:
    comment = f"  # {_COMMENTS[name]}" if name in _COMMENTS else ""
    if isinstance(value, dict) and value:
        return [f"{name}:{comment}", *(_line(key, item) for key, item in value.items())]
    if isinstance(value, list) and value:
        return [f"{name}:{comment}", *(f"  - {yaml_value(item)}" for item in value)]
    return [f"{name}: {yaml_value(value)}{comment}"]


def _line(key: str, value: object) -> str:
    line = f"  {yaml_value(key)}: {yaml_value(value)}"
    comment = _in_words(key, value)
    return f"{line:<46} # {comment}" if comment else line


def _in_words(key: str, value: object) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    if key.endswith("_bytes"):
        return format_bytes(value)
    if key.endswith("_seconds_per_step"):
        return format_seconds(value)
    return format_count(value) if key.endswith("_parameters") else ""


def write_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write plan.yaml whole or not at all. Raises what `write_atomically` raises."""
    write_atomically(path, dump_plan(plan))


def load_plan(path: str | Path) -> Plan:
    """The plan in one file: YAML, or JSON if its name ends in `.json`; `-` reads standard input."""
    content, source = read_text(Path(path)), str(path)
    return parse_plan(parse_json(content, source) if source.lower().endswith(".json") else parse_yaml(content, source), source=source)


def parse_plan(data: object, *, source: str = "plan") -> Plan:
    """Plain values -> a Plan, every one checked. Raises FieldError naming the field, UnknownNameError for a key, or UsageError."""
    if not isinstance(data, Mapping):
        raise UsageError(f"{source}: a plan is a mapping of sections, not {shorten(repr(data), 60)}", "`llamamath plan` writes one")
    if "job" not in data and {"model", "method"} & set(data):
        raise UsageError(f"{source}: this is a job, not a plan", "`llamamath fit --job` reads jobs; `llamamath plan` writes plans")
    _only_known(data, _SECTIONS, "", source)
    job = parse_job(_mapping(data, "job", source), source=f"{source}: job")
    try:
        return _read(data, job, source)
    except UsageError as error:
        raise _from(source, error) from None


def _from(source: str, error: UsageError) -> UsageError:
    """The error with the file's name before it."""
    if source:
        error.message = f"{source}: {error.message}"
        error.args = (error.message,)
    return error


def _read(data: Mapping[str, Any], job: Any, source: str) -> Plan:
    version = data.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise FieldError("schema_version", version, str(SCHEMA_VERSION), hint="plan again with this version of llamamath")
    memory = PlannedMemory(**_values(data, "memory", _MEMORY))
    _check_memory(memory)
    time = None if data.get("time") is None else PlannedTime(**_values(data, "time", _TIME))
    if time is not None:
        _rising("time", "seconds_per_step", time.low_seconds_per_step, time.expected_seconds_per_step, time.high_seconds_per_step)
        if time.low_hours is not None and time.expected_hours is not None and time.high_hours is not None:
            _rising("time", "hours", time.low_hours, time.expected_hours, time.high_hours)
    run = PlannedRun(**_values(data, "run", _RUN))
    if run.num_train_epochs <= 0:
        raise FieldError("run.num_train_epochs", run.num_train_epochs, "a number above 0")
    return Plan(
        job=job,
        run=run,
        memory=memory,
        time=time,
        device=PlannedDevice(**_values(data, "device", _DEVICE)),
        budget=Budget(**_values(data, "budget", _BUDGET)) if data.get("budget") is not None else Budget(),
        binding=text("binding", data.get("binding")),
        notes=tuple(text("notes", item) for item in _items(data, "notes")),
        sources=_words(data, "sources"),
        rejected=tuple(
            Rejection(**_named(item, f"rejected[{index}]", _REJECTED)) for index, item in enumerate(_items(data, "rejected", MOST_REJECTED))
        ),
        versions=_words(data, "versions"),
        created=_date("created", data.get("created")),
    )


def _check_memory(memory: PlannedMemory) -> None:
    """allocated <= reserved <= device <= high, low <= device, pinned <= peak: an estimate says nothing else."""
    order = ("allocated_bytes", "reserved_bytes", "device_bytes", "high_bytes")
    for lower, upper in (*zip(order, order[1:], strict=False), ("low_bytes", "device_bytes"), ("host_pinned_bytes", "host_peak_bytes")):
        if getattr(memory, lower) > getattr(memory, upper):
            raise FieldError(f"memory.{lower}", getattr(memory, lower), f"at most {upper}, {getattr(memory, upper):,}")
    if memory.trainable_parameters > memory.total_parameters * 100:
        raise FieldError(
            "memory.trainable_parameters", memory.trainable_parameters, f"not beyond total_parameters, {memory.total_parameters:,}"
        )


def _rising(section: str, unit: str, low: float, expected: float, high: float) -> None:
    if not low <= expected <= high:
        raise FieldError(f"{section}.expected_{unit}", expected, f"between low_{unit}, {low:g}, and high_{unit}, {high:g}")


def _mapping(data: Mapping[str, Any], name: str, source: str = "") -> Mapping[str, Any]:
    value = data.get(name)
    if not isinstance(value, Mapping):
        error = FieldError(name, value, "a mapping of keys to values", hint="`llamamath plan` writes every section")
        raise _from(source, error)
    return value


def _values(data: Mapping[str, Any], name: str, readers: Mapping[str, Reader]) -> dict[str, Any]:
    return _named(_mapping(data, name), name, readers)


def _named(value: Any, name: str, readers: Mapping[str, Callable[[str, Any], Any]]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise FieldError(name, value, "a mapping of keys to values")
    _only_known(value, readers, f"{name}.", "")
    return {key: reader(f"{name}.{key}", value.get(key)) for key, reader in readers.items()}


def _only_known(data: Mapping[Any, Any], known: Iterable[str], prefix: str, source: str) -> None:
    names = list(known)
    for key in data:
        if key not in names:
            error = UnknownNameError(
                "key", prefix + str(key), [prefix + name for name in closest_names(str(key), names)], f"keys: {', '.join(names)}"
            )
            raise _from(source, error)


def _items(data: Mapping[str, Any], name: str, most: int = _MOST_ITEMS) -> list[Any]:
    value = data.get(name) or []
    if not isinstance(value, list | tuple) or len(value) > most:
        raise FieldError(name, value, f"a list of at most {most} items")
    return list(value)


def _words(data: Mapping[str, Any], name: str) -> dict[str, str]:
    value = data.get(name) or {}
    if not isinstance(value, Mapping) or len(value) > _MOST_ITEMS or not all(isinstance(key, str) for key in value):
        raise FieldError(name, value, "a mapping of names to words")
    return {text(name, key): text(f"{name}.{key}", item) for key, item in value.items()}
