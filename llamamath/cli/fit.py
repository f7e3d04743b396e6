"""`llamamath fit`: does it fit? One job, a file of jobs, a recipe, the matrix of models and GPUs, or the largest that fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from llamamath.cli import options
from llamamath.cli.options import Json, Ram, RecipeName, UseTotal, Vram
from llamamath.errors import FieldError, UsageError

if TYPE_CHECKING:
    from llamamath.cli.fit_one import Shown
    from llamamath.cli.job_sources import Layer
    from llamamath.planner.budget import Budget
    from llamamath.planner.device import Device

MEMORY_MODELS = ("formula", "paper")


def fit(
    context: typer.Context,
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help="Profiles, directories, hub ids.")] = None,
    gpu: options.Gpus = None,
    job: Annotated[str | None, typer.Option("--job", metavar="FILE", help="One job, YAML or JSON; - is standard input.")] = None,
    jobs: Annotated[str | None, typer.Option("--jobs", metavar="FILE", help="JSON lines, a job each; a line out for each line in.")] = None,
    plan: Annotated[str | None, typer.Option("--plan", metavar="FILE", help="A plan: does it still fit?")] = None,
    recipe: RecipeName = None,
    largest: Annotated[str | None, typer.Option("--max", metavar="WHAT", help="The largest that fits: context, batch or group.")] = None,
    most: Annotated[int, typer.Option("--suggestions", metavar="N", help="At most N changes for what does not fit.", min=0, max=50)] = 6,
    memory_model: Annotated[str, typer.Option("--memory-model", metavar="WORD", help="paper: the papers' equations too.")] = "formula",
    vram: Vram = None,
    ram: Ram = None,
    use_total: UseTotal = False,
    method: options.Method = None,
    quantization: options.Quantization = None,
    dtype: options.Dtype = None,
    lora_r: options.LoraRank = None,
    lora_dropout: options.LoraDropout = None,
    target_modules: options.Targets = None,
    full: options.Full = False,
    batch: options.Batch = None,
    accumulation: options.Accumulation = None,
    max_length: options.MaxLength = None,
    max_prompt_length: options.MaxPrompt = None,
    max_completion_length: options.MaxCompletion = None,
    num_generations: options.Generations = None,
    beta: options.Beta = None,
    checkpointing: options.Checkpointing = False,
    no_checkpointing: options.NoCheckpointing = False,
    padding: options.Padding = False,
    packed: options.Packed = False,
    attn: options.Attention = None,
    optim: options.Optim = None,
    loss: options.Loss = None,
    stack: options.StackName = None,
    offload: options.Offload = None,
    engine: options.Engine = None,
    eval_batch: options.EvalBatch = None,
    images: options.Images = None,
    json_output: Json = False,
) -> None:
    """Say whether training fits a GPU, how much memory it takes where, and what to change if it does not.

    One MODEL (or --job FILE, or --recipe NAME) and one GPU: every phase. Several of either, or none: a table of all of them.
    A flag beats the file, the file beats the recipe, the recipe beats the default.

    Ends with 0 if it fits even at the upper bound, 1 if it is tight or does not fit, 2 if the input is wrong, 3 if something is missing.
    With --jobs: 2 if any line was bad, else 1 if any job does not fit or is tight, else 0. A table: 1 only if nothing fits anywhere.
    """
    from llamamath.cli.fit_one import Shown
    from llamamath.cli.job_sources import flag_layer
    from llamamath.planner.budget import Budget
    from llamamath.units import parse_bytes

    flags = flag_layer(context.params)  # those of the job, by name
    if memory_model not in MEMORY_MODELS:
        raise FieldError("--memory-model", memory_model, ", ".join(MEMORY_MODELS))
    chosen = _Choice(models=tuple(models or ()), job=job, jobs=jobs, plan=plan, recipe=recipe, largest=largest, flags=flags)
    _check(chosen)
    budget = Budget(
        vram_bytes=parse_bytes(vram, "--vram") if vram is not None else None,
        ram_bytes=parse_bytes(ram, "--ram") if ram is not None else None,
    )
    shown = Shown(json_output=json_output, equations=memory_model == "paper", suggestions=most)
    code = _run(chosen, tuple(gpu or ()), budget, use_total, shown)
    if code:
        raise typer.Exit(code)


class _Choice:
    """What to judge, as given on the command line."""

    def __init__(
        self,
        *,
        models: tuple[str, ...],
        job: str | None,
        jobs: str | None,
        plan: str | None,
        recipe: str | None,
        largest: str | None,
        flags: Layer,
    ) -> None:
        self.models, self.job, self.jobs, self.plan = models, job, jobs, plan
        self.recipe, self.largest, self.flags = recipe, largest, flags


def _check(chosen: _Choice) -> None:
    """Refuse what contradicts itself, rather than ignore half of it."""
    for name, value in (("--jobs", chosen.jobs), ("--plan", chosen.plan)):
        others: dict[str, object] = {"MODEL": chosen.models, "--job": chosen.job, "--recipe": chosen.recipe, "--max": chosen.largest}
        others |= {"--jobs": chosen.jobs, "--plan": chosen.plan, "a flag of a job": chosen.flags.values}
        clash = next((other for other, given in others.items() if given and other != name), None)
        if value is not None and clash:
            raise UsageError(f"{name} says everything about its jobs, so {clash} has no place beside it", "leave one of the two out")
    if chosen.job is not None and chosen.recipe is not None:
        raise UsageError("--job and --recipe are two jobs", "leave one of the two out")
    if len(chosen.models) > 1 and (chosen.job or chosen.recipe or chosen.largest):
        raise UsageError("several models are compared in a table, without --job, --recipe or --max", "name one model")


def _run(chosen: _Choice, gpus: Sequence[str], budget: Budget, use_total: bool, shown: Shown) -> int:
    one_job = bool(chosen.jobs or chosen.plan or chosen.job or chosen.recipe or len(chosen.models) == 1)
    if len(gpus) > 1 or not one_job:
        if chosen.jobs or chosen.plan or chosen.recipe or chosen.largest:
            raise UsageError("--jobs, --plan, --recipe and --max take one --gpu", "run it once for each")
        from llamamath.cli.fit_matrix import fit_matrix

        return fit_matrix(chosen.models, chosen.job, gpus, chosen.flags, budget, use_total=use_total, json_output=shown.json_output)
    device, looked_at = _device(gpus[0] if gpus else "auto", budget, use_total)
    return _run_one(chosen, device, budget, shown.seen(looked_at if not gpus or gpus[0].startswith("auto") else ()))


def _device(gpu: str, budget: Budget, use_total: bool) -> tuple[Device, tuple[str, ...]]:
    from llamamath.planner.probe.devices import device_for

    return device_for(gpu, use_total=use_total, vram_limit_bytes=budget.vram_bytes)


def _run_one(chosen: _Choice, device: Device, budget: Budget, shown: Shown) -> int:
    from llamamath.cli.fit_jobs import fit_jobs
    from llamamath.cli.fit_one import fit_one, fit_recipe
    from llamamath.cli.job_sources import Layer, combine, file_layer, recipe_stages
    from llamamath.profiles.recipes import find_recipe

    if chosen.jobs is not None:
        return fit_jobs(chosen.jobs, device, budget, shown.suggestions, json_output=shown.json_output)
    if chosen.plan is not None:
        from llamamath.cli.fit_plan import fit_plan

        return fit_plan(chosen.plan, device, budget, shown)
    layers = [chosen.flags]
    if chosen.models:
        layers.append(Layer(origin="argument", values={"model": chosen.models[0]}))
    if chosen.recipe is not None:
        recipe = find_recipe(chosen.recipe)
        stages = recipe_stages(recipe, layers)
        if chosen.largest is None:
            return fit_recipe(recipe, stages, device, budget, shown)
        sourced = stages[-1][1]
    else:
        if chosen.job is not None:
            layers.append(file_layer(chosen.job))
        sourced = combine(layers)
    if chosen.largest is None:
        return fit_one(sourced, device, budget, shown)
    from llamamath.cli.fit_largest import fit_largest

    return fit_largest(chosen.largest, sourced, device, budget, json_output=shown.json_output)
