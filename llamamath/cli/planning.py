"""What `llamamath plan` does once its options are read: find the device, search, show, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamamath.cli.output import people, print_json, print_progress
from llamamath.errors import UsageError
from llamamath.planner.contract import SCHEMA_VERSION

if TYPE_CHECKING:
    from llamamath.planner.budget import Budget
    from llamamath.planner.device import Device
    from llamamath.planner.plan.record import Plan
    from llamamath.planner.search.request import Request
    from llamamath.planner.search.result import Candidate, SearchResult

DEFAULT_OUTPUT = "plan.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What was asked for. requests: (stage, request), one for each stage of a recipe; the stage is "" without a recipe."""

    gpu: str
    use_total: bool
    budget: Budget
    requests: Sequence[tuple[str, Request]]
    recipe: str | None
    output: str | None
    emit: str | None
    json_output: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request, answered. plan: None when nothing fits."""

    stage: str
    result: SearchResult
    plan: Plan | None


def run_plan(task: Task) -> int:
    """Plan every stage. Exit code 0 if each has a plan, 1 if one has none."""
    from dataclasses import replace

    from llamamath.planner.model_files.config_file import resolve_model
    from llamamath.planner.probe.devices import device_for
    from llamamath.planner.search.engine import search

    device, looked_at = device_for(task.gpu, use_total=task.use_total, vram_limit_bytes=task.budget.vram_bytes)
    planned = []
    for stage, request in task.requests:
        asked = replace(request, attentions=_attentions(task.gpu))
        result = search(asked, device, task.budget, resolve_model)
        planned.append(Planned(stage=stage, result=result, plan=_plan_of(task, stage, asked, result, device)))
    paths = _write(planned, task)  # before anything is shown: if it fails, nothing is
    if task.json_output:
        print_json(_document(planned, device, looked_at))
    elif task.emit:
        _emit(planned, device, task.recipe)
    elif task.output != "-":
        _show(planned, device, looked_at, task.budget)
    for path in paths:
        print_progress(f"plan written to {path}")
    return 0 if all(one.result.chosen for one in planned) else 1


def _attentions(gpu: str) -> tuple[str, ...]:
    """Attention kernels to choose from: FlashAttention where it is installed, if the plan is for this machine."""
    from importlib.metadata import PackageNotFoundError, version

    if not gpu.startswith(("auto", "cuda", "gpu")):
        return ("sdpa",)
    try:
        version("flash-attn")
    except PackageNotFoundError:
        return ("sdpa",)
    return ("flash_attention_2", "sdpa")


def _plan_of(task: Task, stage: str, request: Request, result: SearchResult, device: Device) -> Plan | None:
    if result.chosen is None:
        return None
    from llamamath.planner.plan.plan import make_plan

    return make_plan(request, result, device, task.budget, recipe=task.recipe, stage=stage or None)


def _write(planned: Sequence[Planned], task: Task) -> list[Path]:
    """The plan files: named by -o, plan.yaml by default when people are reading; `-`: standard output. Stages get files of their own."""
    paths = []
    from llamamath.files import write_atomically
    from llamamath.planner.plan.plan import dump_plan

    quiet = task.json_output or task.emit is not None
    output = task.output or ("" if quiet else DEFAULT_OUTPUT)
    if output == "-" and quiet:
        raise UsageError("-o - prints the plan, and --json and --emit print something else there", "name a file")
    texts = [(one.stage, dump_plan(one.plan)) for one in planned if one.plan is not None]
    if output == "-":
        print("---\n".join(text for _, text in texts), end="")
        return []
    for stage, text in texts if output else ():
        path = Path(output)
        if len(planned) > 1:
            path = path.with_name(f"{path.stem}-{stage}{path.suffix}")
        write_atomically(path, text)
        paths.append(path)
    return paths


def _emit(planned: Sequence[Planned], device: Device, recipe_name: str | None) -> None:
    """TRL's arguments as Python; with a recipe also its learning rate, epochs, temperature and reward weights."""
    from llamamath.planner.trl.arguments import stage_settings, trl_arguments
    from llamamath.planner.trl.text import python_text
    from llamamath.profiles.recipes import find_recipe

    stages = {stage.name: stage for stage in find_recipe(recipe_name).stages} if recipe_name else {}
    for one in planned:
        chosen = one.result.chosen
        if chosen is None:
            continue
        settings = stage_settings(stages[one.stage]) if one.stage in stages else None
        arguments = trl_arguments(chosen.job, chosen.architecture, cpu=device.kind == "cpu", settings=settings)
        origin = f", recipe {recipe_name}, stage {one.stage}" if one.stage else ""
        print(python_text(arguments, f"Written by llamamath for {device.name}{origin}."))


def _show(planned: Sequence[Planned], device: Device, looked_at: Sequence[str], budget: Budget) -> None:
    from rich.rule import Rule

    from llamamath.cli.layout import print_looked_at
    from llamamath.cli.output import is_ascii
    from llamamath.cli.show_plan import print_plan

    console = people()
    print_looked_at(console, looked_at or (device.limit_basis,))
    for one in planned:
        if one.stage and len(planned) > 1:
            console.print(Rule(f"stage {one.stage}", characters="-" if is_ascii(console) else "─"))
        print_plan(console, one.result, device, budget)


def _document(planned: Sequence[Planned], device: Device, looked_at: Sequence[str]) -> dict[str, object]:
    """One stage: its document. Several: a list of them."""
    from llamamath.planner.contract import device_document

    head: dict[str, object] = {"schema_version": SCHEMA_VERSION, "device": device_document(device), "looked_at": list(looked_at)}
    if len(planned) == 1:
        return head | _answer(planned[0])
    return head | {"stages": [{"stage": one.stage} | _answer(one) for one in planned]}


def _answer(one: Planned) -> dict[str, object]:
    from llamamath.planner.plan.plan import plan_to_dict

    result = one.result
    return {
        "chosen": _candidate(result.chosen),
        "neighbours": [{"label": item.label} | (_candidate(item.candidate) or {}) for item in result.neighbours],
        "rejected": [{"what": item.what, "reason": item.reason, "shortfall_bytes": item.shortfall_bytes} for item in result.rejected],
        "binding": result.binding,
        "nearest": _candidate(result.nearest),
        "shortfall_bytes": result.shortfall_bytes,
        "origins": dict(result.sources),
        "ranked_by": result.ranked_by,
        "notes": list(result.notes),
        "evaluated": result.evaluated,
        "seconds": round(result.seconds, 3),
        "plan": None if one.plan is None else plan_to_dict(one.plan),
    }


def _candidate(found: Candidate | None) -> dict[str, object] | None:
    from llamamath.planner.contract import fit_document

    if found is None:
        return None
    document = fit_document(found.job, found.estimate, found.verdict)
    time, cost = found.time, found.cost
    if time is not None:
        document["step"] = {
            "low_seconds": time.low_seconds,
            "expected_seconds": time.expected_seconds,
            "high_seconds": time.high_seconds,
            "samples": time.samples_per_step,
            "tokens": time.tokens_per_step,
            "basis": time.basis,
        }
    if cost is not None:
        document["run"] = {
            "num_steps": cost.num_steps,
            "low_hours": cost.low_hours,
            "expected_hours": cost.expected_hours,
            "high_hours": cost.high_hours,
            "low_usd": cost.low_usd,
            "high_usd": cost.high_usd,
        }
    return document | {"candidate_notes": list(found.notes)}
