"""`fit` for one job, or for the stages of a recipe: figures, bars, reasons, and what would help."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llamamath.cli.judging import Judged, judge_job
from llamamath.cli.layout import print_looked_at
from llamamath.cli.output import people, print_json
from llamamath.planner.contract import SCHEMA_VERSION

if TYPE_CHECKING:
    from rich.console import Console

    from llamamath.cli.job_sources import SourcedJob
    from llamamath.planner.architecture import Architecture
    from llamamath.planner.budget import Budget
    from llamamath.planner.device import Device
    from llamamath.planner.estimate import Estimate
    from llamamath.profiles.recipes import Recipe, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What to show beside the verdict. equations: `--memory-model paper`. looked_at: how the device was found."""

    json_output: bool
    equations: bool = False
    suggestions: int = 6
    looked_at: tuple[str, ...] = ()

    def seen(self, looked_at: tuple[str, ...]) -> Shown:
        """The same, with how the device was found."""
        return replace(self, looked_at=looked_at)


def judge_sourced(sourced: SourcedJob, device: Device, budget: Budget, shown: Shown) -> Judged:
    """The verdict on a job whose values have origins."""
    from llamamath.planner.model_files.config_file import resolve_model

    return judge_job(sourced.job, resolve_model(sourced.job.model), device, budget, sourced.origins, suggestions=shown.suggestions)


def fit_one(sourced: SourcedJob, device: Device, budget: Budget, shown: Shown) -> int:
    """One job. Exit code 0 if it fits, 1 if it is tight or does not fit."""
    judged = judge_sourced(sourced, device, budget, shown)
    if shown.json_output:
        print_json(judged.document() | _equations_document(judged, shown))
    else:
        console = people()
        print_looked_at(console, shown.looked_at)
        print_judged(console, judged, shown_suggestions=shown.suggestions > 0)
        if shown.equations:
            _print_equations(console, judged)
    return 0 if judged.fits else 1


def fit_recipe(recipe: Recipe, stages: list[tuple[Stage, SourcedJob]], device: Device, budget: Budget, shown: Shown) -> int:
    """Every stage of a recipe, each beside the paper's own claim. Exit code 0 only if all fit."""
    judged = [(stage, judge_sourced(sourced, device, budget, shown)) for stage, sourced in stages]
    if shown.json_output:
        print_json(_recipe_document(recipe, judged, device, shown))
    else:
        _print_recipe(recipe, judged, device, shown)
    return 0 if all(one.fits for _, one in judged) else 1


def print_judged(console: Console, judged: Judged, *, shown_suggestions: bool = True) -> None:
    """Title, verdict, bars, figures, origins and suggestions of one job."""
    from llamamath.cli.layout import print_paragraph
    from llamamath.cli.show_job import print_origins, title_of
    from llamamath.cli.show_memory import print_memory
    from llamamath.cli.show_verdict import print_figures, print_suggestions, print_verdict
    from llamamath.planner.budget import host_limit
    from llamamath.planner.fit.fitting import not_runnable

    print_paragraph(console, title_of(judged.job, judged.architecture.name), style="bold")
    print_verdict(console, judged.estimate, judged.verdict, judged.device, host_limit(judged.device, judged.budget))
    console.print()
    print_memory(console, judged.estimate, judged.verdict, judged.device)
    console.print()
    print_figures(console, judged.estimate, judged.verdict, judged.device)
    if judged.origins:
        print_origins(console, judged.job, judged.origins)
    if not judged.fits and shown_suggestions:
        print_suggestions(console, judged.suggestions, not_runnable(judged.job))


def _print_recipe(recipe: Recipe, judged: list[tuple[Stage, Judged]], device: Device, shown: Shown) -> None:
    from rich.rule import Rule

    from llamamath.cli.output import is_ascii
    from llamamath.cli.show_paper import print_findings, print_paper, print_recipe_head

    console = people()
    print_recipe_head(console, recipe)
    print_looked_at(console, shown.looked_at)
    for number, (stage, one) in enumerate(judged, 1):
        title = f"stage {number} of {len(judged)}: {stage.name}" if len(judged) > 1 else stage.name
        console.print(Rule(title, characters="-" if is_ascii(console) else "─"))
        print_judged(console, one, shown_suggestions=shown.suggestions > 0)
        if shown.equations:
            _print_equations(console, one)
        console.print()
    console.print(Rule("the paper", characters="-" if is_ascii(console) else "─"))
    stage, estimate, architecture = _as_published(recipe, device)
    print_paper(console, recipe, estimate, architecture, stage.name)
    print_findings(console, recipe, architecture, stage.name)


def _as_published(recipe: Recipe, device: Device) -> tuple[Stage, Estimate, Architecture]:
    """The recipe's stage that needs most memory, without anybody's flags: what the paper's figures are compared with."""
    from llamamath.planner.fit.fitting import estimate_on
    from llamamath.planner.job_files.job_file import parse_job
    from llamamath.planner.model_files.config_file import resolve_model

    found = []
    for stage in recipe.stages:
        job = parse_job(stage.job, source=f"recipe {recipe.name}")
        architecture = resolve_model(job.model)
        found.append((stage, estimate_on(job, architecture, device), architecture))
    return max(found, key=lambda one: one[1].peak.device_bytes)


def _print_equations(console: Console, judged: Judged) -> None:
    from llamamath.cli.show_paper import print_equations

    print_equations(console, judged.job, judged.architecture, judged.estimate)


def _equations_document(judged: Judged, shown: Shown) -> dict[str, object]:
    if not shown.equations:
        return {}
    from llamamath.planner.paper import paper_memory

    values = [paper_memory(judged.job, judged.architecture, name) for name in ("eq. 4", "eq. 6")]
    terms = {value.equation: {f"{name}_bytes": size for name, size in value.terms.items()} for value in values}
    return {"paper_equations": {value.equation: terms[value.equation] | {"total_bytes": value.total_bytes} for value in values}}


def _recipe_document(recipe: Recipe, judged: list[tuple[Stage, Judged]], device: Device, shown: Shown) -> dict[str, object]:
    from llamamath.planner.paper import explain_choices, explain_contradictions, explain_difference

    worst, estimate, architecture = _as_published(recipe, device)
    stages = [{"stage": stage.name} | found.document() | _equations_document(found, shown) for stage, found in judged]
    claims = [{"quantity": c.quantity, "value": c.value, "unit": c.unit, "location": c.location, "basis": c.basis} for c in recipe.claims]
    choices = explain_choices(recipe, architecture, worst.name)
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe.name,
        "source": recipe.source,
        "verdict": _worst([found.verdict.verdict for _, found in judged]),
        "stages": stages,
        "claims": claims,
        "difference": explain_difference(recipe, estimate, architecture, worst.name),
        "contradictions": explain_contradictions(recipe, architecture, worst.name),
        "choices": [{"topic": item.topic, "choice": item.choice, "reason": item.reason} for item in choices],
    }


def _worst(verdicts: list[str]) -> str:
    from llamamath.planner.budget import DOES_NOT_FIT, FITS, TIGHT

    return max(verdicts, key=(FITS, TIGHT, DOES_NOT_FIT).index)
