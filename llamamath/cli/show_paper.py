"""What a recipe's paper says, beside what is estimated here, and why they differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llamamath.cli.layout import print_columns, print_heading, print_pairs, print_paragraph, print_points
from llamamath.planner.estimate import COMPONENTS
from llamamath.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from llamamath.planner.architecture import Architecture
    from llamamath.planner.estimate import Estimate
    from llamamath.planner.job import Job
    from llamamath.profiles.recipes import PaperClaim, Recipe

GB = 10**9


def print_recipe_head(console: Console, recipe: Recipe) -> None:
    """Which paper this is."""
    print_heading(console, f"Recipe {recipe.name}")
    pairs = [("paper", recipe.title), ("source", recipe.source), ("model", recipe.base_model), ("hardware", recipe.gpu)]
    for quantity, name in (("gpu_memory", "GPU"), ("host_memory", "RAM")):
        claim = recipe.claim(quantity)
        if claim is not None:
            pairs.append((f"its {name}", f"{claim.value:g} {claim.unit} of memory ({claim.location}; {claim.basis})"))
    print_pairs(console, pairs)


def print_paper(console: Console, recipe: Recipe, estimate: Estimate, architecture: Architecture, stage: str) -> None:
    """The paper's memory figures beside ours, then why they differ, in the papers' own arithmetic.

    estimate: of the stage as the recipe has it. What the paper contradicts and leaves open is printed by `print_findings`.
    """
    from llamamath.planner.paper import explain_contradictions, explain_difference

    claims = [claim for claim in recipe.claims if claim.value_bytes is not None]
    if claims:
        print_heading(console, "the paper's memory and this estimate:")
        _print_claims(console, claims, estimate)
    difference = explain_difference(recipe, estimate, architecture, stage)
    contradictions = explain_contradictions(recipe, architecture, stage)
    own = difference[: len(difference) - len(contradictions)]
    own = [sentence for sentence in own if not (claims and sentence.startswith("The paper says"))]  # the table has said it
    if own:
        print_heading(console, "why they differ:")
        print_points(console, own)


def _print_claims(console: Console, claims: list[PaperClaim], estimate: Estimate) -> None:
    peak, host = estimate.peak, estimate.host
    rows = []
    for claim in claims:
        on_gpu = claim.quantity == "gpu_memory"
        ours = peak.device_bytes if on_gpu else host.peak_bytes
        theirs = claim.value_bytes or 0
        ratio = f"x {ours / theirs:.2g}" if theirs else ""
        style = "red" if ours > theirs else "green"
        basis = f"{claim.location}: {claim.basis}" + (f", {claim.equation}" if claim.equation else "")
        rows.append(("GPU" if on_gpu else "RAM", f"{claim.value:g} {claim.unit}", f"{ours / GB:,.1f} GB", Text(ratio, style=style), basis))
    print_columns(console, ("", "paper", "here", "", "where the paper says it"), rows, right="lrrrl", indent=2)


def print_findings(console: Console, recipe: Recipe, architecture: Architecture, stage: str) -> None:
    """Where the paper contradicts itself or arithmetic, and what it leaves open with the choice made here."""
    from llamamath.planner.paper import explain_choices, explain_contradictions

    contradictions = explain_contradictions(recipe, architecture, stage)
    if contradictions:
        print_heading(console, "where the paper does not hold together:")
        for sentence in contradictions:
            claim, _, finding = sentence.removeprefix("Stated: ").partition(" Found: ")
            print_paragraph(console, claim, indent=2, style="bold red")
            print_paragraph(console, finding, indent=4)
    choices = explain_choices(recipe, architecture, stage)
    if choices:
        print_heading(console, "what the paper leaves open, and what is assumed here:")
        for item in choices:
            print_paragraph(console, Text.assemble((item.topic, "bold"), f": {item.choice}"), indent=2)
            print_paragraph(console, item.reason, indent=4, style="dim")


def print_equations(console: Console, job: Job, architecture: Architecture, estimate: Estimate) -> None:
    """`--memory-model paper`: both of the papers' equations for this job, term by term, beside the estimate. Never used for a verdict."""
    from llamamath.planner.paper import paper_memory

    phase = estimate.phase(estimate.peak.phase)
    equations = [paper_memory(job, architecture, name) for name in ("eq. 4", "eq. 6")]
    terms = [*COMPONENTS, *(term for value in equations for term in value.terms if term not in COMPONENTS)]
    rows: list[tuple[str | Text, ...]] = []
    for term in dict.fromkeys(terms):
        ours = phase.component(term) if phase and term in COMPONENTS else None
        sizes = [value.terms.get(term) for value in equations] + [ours]
        rows.append((term.replace("_", " "), *("-" if size is None else format_bytes(size) for size in sizes)))
    slack = estimate.peak.device_bytes - estimate.peak.allocated_bytes
    rows.append(("allocator, context", "-", "-", format_bytes(slack)))
    totals = [format_bytes(value.total_bytes) for value in equations] + [format_bytes(estimate.peak.device_bytes)]
    rows.append((Text("total", style="bold"), *(Text(total, style="bold") for total in totals)))
    print_heading(console, "the papers' equations for this job (for comparison; no verdict rests on them):")
    header = ("", "eq. 4 (LLaMA-Math)", "eq. 6 (HLE pilot)", "this estimate")
    print_columns(console, header, rows, right="lrrr", indent=2)
