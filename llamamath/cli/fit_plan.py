"""`fit --plan`: whether a stored plan, edited or not, still fits this device and its own budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamamath.cli.judging import judge_job
from llamamath.cli.layout import print_heading, print_looked_at, print_pairs
from llamamath.cli.output import people, print_json

if TYPE_CHECKING:
    from llamamath.cli.fit_one import Shown
    from llamamath.planner.budget import Budget
    from llamamath.planner.device import Device


def fit_plan(path: str, device: Device, budget: Budget, shown: Shown) -> int:
    """Judge the plan's job again. Exit code 0 if it fits, 1 if it is tight or does not fit. Flags beat the plan's own budget."""
    from dataclasses import replace

    from llamamath.cli.fit_one import print_judged
    from llamamath.planner.model_files.config_file import resolve_model
    from llamamath.planner.plan.plan import changed_versions, load_plan
    from llamamath.units import format_bytes

    plan = load_plan(path)
    own = plan.budget
    limits = replace(own, vram_bytes=budget.vram_bytes or own.vram_bytes, ram_bytes=budget.ram_bytes or own.ram_bytes)
    judged = judge_job(plan.job, resolve_model(plan.job.model), device, limits, plan.sources)
    changed = changed_versions(plan)
    if shown.json_output:
        planned = {"created": plan.created, "device": plan.device.name, "high_bytes": plan.memory.high_bytes}
        print_json(judged.document() | {"plan": planned, "changed_versions": list(changed)})
        return 0 if judged.fits else 1
    console = people()
    print_looked_at(console, shown.looked_at)
    print_judged(console, judged)
    print_heading(console, "the plan:")
    then, now = plan.memory.high_bytes, judged.estimate.peak.high_bytes
    same = "as now" if then == now else f"now {format_bytes(now)}"
    pairs = [("made", f"{plan.created}, for {plan.device.name}"), ("at most", f"{format_bytes(then)} when it was made, {same}")]
    print_pairs(console, [*pairs, ("versions", ", ".join(changed) if changed else "as when it was made")])
    return 0 if judged.fits else 1
