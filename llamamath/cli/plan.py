"""`llamamath plan`: what should run here? Looks at the machine, chooses every open value within the budget, and writes the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llamamath.cli import options
from llamamath.cli.options import Json, OneGpu, Ram, RecipeName, UseTotal, Vram
from llamamath.errors import FieldError, UsageError

if TYPE_CHECKING:
    from llamamath.cli.job_sources import Layer
    from llamamath.planner.search.request import Request
    from llamamath.planner.throughput.token_lengths import TokenLengths

EMITTERS = ("trl",)


def plan(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A profile, directory or hub id; auto chooses one.")] = "auto",
    gpu: OneGpu = "auto",
    recipe: RecipeName = None,
    stage: Annotated[str | None, typer.Option("--stage", metavar="NAME", help="Only this stage of the recipe.")] = None,
    objective: Annotated[str, typer.Option("--objective", metavar="WORD", help="throughput, context, model or cost.")] = "throughput",
    samples: Annotated[int | None, typer.Option("--samples", metavar="N", help="Examples (GRPO: prompts), for time and cost.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", metavar="X", help="Passes over them.  [default: 1]")] = None,
    effective_batch: Annotated[int | None, typer.Option("--effective-batch", metavar="N", help="Samples per step, kept exactly.")] = None,
    token_lengths: Annotated[str | None, typer.Option("--token-lengths", metavar="FILE", help="Lengths of your data, in tokens.")] = None,
    vram: Vram = None,
    ram: Ram = None,
    disk: options.Disk = None,
    hours: options.Hours = None,
    cost: options.Cost = None,
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
    output: options.Output = None,
    emit: Annotated[str | None, typer.Option("--emit", metavar="trl", help="Print the plan as TRL's arguments, in Python.")] = None,
    json_output: Json = False,
) -> None:
    """Choose what to train on this machine, or on a GPU you name, and write it to plan.yaml.

    What a flag or a recipe says is kept; everything else is chosen so that training fits even at the upper bound of its memory, and is
    fastest. Without an NVIDIA GPU the plan is for this machine's processor and RAM.

    Ends with 0 if something fits, 1 if nothing does (with what comes nearest), 2 if the input is wrong, 3 if something is missing.
    """
    from llamamath.cli.job_sources import flag_layer
    from llamamath.cli.planning import Task, run_plan
    from llamamath.planner.budget import Budget
    from llamamath.units import parse_bytes

    if emit is not None and emit not in EMITTERS:
        raise FieldError("--emit", emit, ", ".join(EMITTERS))
    if emit and json_output:
        raise UsageError("--emit and --json both want standard output", "leave one of the two out")
    if stage is not None and recipe is None:
        raise UsageError("--stage is a stage of a recipe", "name the recipe with --recipe")
    for name, value in (("--hours", hours), ("--cost", cost)):
        if value is not None and not 0 < value < 1e9:
            raise FieldError(name, value, "a number above 0")
    budget = Budget(
        vram_bytes=parse_bytes(vram, "--vram") if vram is not None else None,
        ram_bytes=parse_bytes(ram, "--ram") if ram is not None else None,
        disk_bytes=parse_bytes(disk, "--disk") if disk is not None else None,
        hours=hours,
        cost_usd=cost,
    )
    flags = flag_layer(context.params)
    named = None if model == "auto" else model
    requests = _requests(flags, named, recipe, stage, objective, effective_batch, samples, epochs, token_lengths)
    task = Task(
        gpu=gpu, use_total=use_total, budget=budget, requests=requests, recipe=recipe, output=output, emit=emit, json_output=json_output
    )
    code = run_plan(task)
    if code:
        raise typer.Exit(code)


def _requests(
    flags: Layer,
    model: str | None,
    recipe_name: str | None,
    stage_name: str | None,
    objective: str,
    effective_batch: int | None,
    samples: int | None,
    epochs: float | None,
    lengths_path: str | None,
) -> list[tuple[str, Request]]:
    """(stage, request) for each stage of the recipe, or ("", request) without one. What is given here beats the recipe."""
    from llamamath.cli.job_sources import DEFAULT_METHOD, recipe_flags
    from llamamath.planner.job_files.length_file import read_lengths
    from llamamath.planner.search.request import Request, request_of_stage
    from llamamath.profiles.recipes import find_recipe

    lengths = read_lengths(lengths_path) if lengths_path is not None else None
    if recipe_name is None:
        fixed = dict(flags.values)
        method = str(fixed.pop("method", DEFAULT_METHOD))
        sources = dict.fromkeys(fixed, "flag") | {"method": "flag" if "method" in flags.values else "default"}
        own = Request(method=method, fixed=fixed, sources=sources, objective=objective)
        return [("", _with(own, model, effective_batch, samples, epochs, lengths))]
    recipe = find_recipe(recipe_name)
    names = [stage.name for stage in recipe.stages]
    if stage_name is not None and stage_name not in names:
        raise FieldError("--stage", stage_name, ", ".join(names))
    found = []
    for stage, given in zip(recipe.stages, recipe_flags(recipe, flags), strict=True):
        if stage_name in (None, stage.name):
            own = request_of_stage(stage, recipe=recipe.name, changed=given.values, objective=objective)
            found.append((stage.name, _with(own, model, effective_batch, samples, epochs, lengths)))
    return found


def _with(
    request: Request, model: str | None, batch: int | None, samples: int | None, epochs: float | None, lengths: TokenLengths | None
) -> Request:
    """The request with what was given on the command line in place of its own."""
    from dataclasses import replace

    return replace(
        request,
        model=request.model if model is None else model,
        sources=request.sources if model is None else {**request.sources, "model": "argument"},
        effective_batch_size=request.effective_batch_size if batch is None else batch,
        num_samples=request.num_samples if samples is None else samples,
        num_train_epochs=request.num_train_epochs if epochs is None else epochs,
        token_lengths=lengths,
    )
