"""Where a job's values come from: a flag beats the file, the file beats the recipe, the recipe beats the default. The origin is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING

from llamamath.errors import UsageError, shorten
from llamamath.planner.job import Job
from llamamath.planner.job_files.job_file import parse_job
from llamamath.planner.job_files.job_text import job_to_dict
from llamamath.planner.job_files.yaml_json import parse_json, parse_yaml, read_text

if TYPE_CHECKING:
    from llamamath.profiles.recipes import Recipe, Stage

PARAMETERS = {
    "method": "method",
    "quantization": "quantization",
    "dtype": "dtype",
    "lora_r": "lora.r",
    "lora_dropout": "lora.lora_dropout",
    "target_modules": "lora.target_modules",
    "batch": "per_device_train_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "max_length": "max_length",
    "max_prompt_length": "max_prompt_length",
    "max_completion_length": "max_completion_length",
    "num_generations": "num_generations",
    "beta": "beta",
    "attn": "attn_implementation",
    "optim": "optim",
    "loss": "loss",
    "stack": "stack",
    "offload": "offload",
    "engine": "rollout.engine",
    "eval_batch": "per_device_eval_batch_size",
    "images": "num_images",
}
"""A command's parameter -> the job-file key that it sets. The flag is the parameter's name with dashes: see `flag_of`."""

ONLY_GRPO = ("max_prompt_length", "max_completion_length", "num_generations", "rollout.engine")
NOT_GRPO = ("max_length",)

DEFAULT_METHOD = "grpo"
DEFAULT_LENGTH = 1024
"""TRL 1.16's default of SFTConfig.max_length and DPOConfig.max_length."""
DEFAULT_PROMPT, DEFAULT_COMPLETION, DEFAULT_GENERATIONS = 512, 1024, 8
"""A mathematical question and its derivation; TRL 1.16's default of GRPOConfig.num_generations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcedJob:
    """A job, and for each of its keys (`lora.r` for nested ones) where the value came from."""

    job: Job
    origins: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Some of a job's keys from one place. origin: `flag`, `file job.yaml`, `recipe llama-math-3b`, `argument`."""

    origin: str
    values: Mapping[str, object]


def flag_of(key: str) -> str:
    """The flag that sets a job-file key: `lora.r` -> `--lora-r`; the key itself if no flag does."""
    name = next((name for name, target in PARAMETERS.items() if target == key), None)
    return key if name is None else f"--{name.replace('_', '-')}"


def flag_layer(parameters: Mapping[str, object]) -> Layer:
    """The job's flags among a command's parameters (those not given are None), as job-file keys; commas part the words of a list."""
    given = {key: parameters[name] for name, key in PARAMETERS.items() if parameters.get(name) is not None}
    for key, yes, no in (("gradient_checkpointing", "checkpointing", "no_checkpointing"), ("padding", "padding", "packed")):
        chosen = either(f"--{yes}", bool(parameters.get(yes)), f"--{no.replace('_', '-')}", bool(parameters.get(no)))
        if chosen is not None:
            given[key] = chosen
    targets, offload = given.get("lora.target_modules"), given.get("offload")
    if isinstance(targets, str) and "," in targets:
        given["lora.target_modules"] = [name.strip() for name in targets.split(",") if name.strip()]
    if isinstance(offload, str):
        given["offload"] = [word.strip() for word in offload.split(",") if word.strip() not in ("", "none")]
    if parameters.get("full"):
        clash = next((flag_of(key) for key in given if key.startswith("lora.")), None)
        if clash is not None:
            raise UsageError(f"--full means no LoRA, so {clash} has nothing to set", "leave one of the two out")
        given["lora"] = None
        given.setdefault("quantization", "none")
    return Layer(origin="flag", values=given)


def either(yes: str, wanted: bool, no: str, unwanted: bool) -> bool | None:
    """Two opposite flags as one value: None if neither was given. Raises UsageError for both."""
    if wanted and unwanted:
        raise UsageError(f"{yes} and {no} are opposites", "leave one of the two out")
    return wanted if wanted or unwanted else None


def file_layer(path: str) -> Layer:
    """The keys of one job file: YAML, or JSON if its name ends in `.json`; `-` is standard input. Checked when they are combined."""
    content = read_text(Path(path))
    data = parse_json(content, path) if path.lower().endswith(".json") else parse_yaml(content, path)
    if not isinstance(data, Mapping):
        found = "nothing" if data is None else shorten(repr(data), 60)
        raise UsageError(f"{path}: a job is a mapping of keys to values, not {found}")
    return Layer(origin=f"file {path}", values={str(key): value for key, value in data.items()})


def combine(layers: list[Layer]) -> SourcedJob:
    """A job from layers, the strongest first; what none of them says is a default. Raises UsageError naming the field.

    Without a file, whose contract is that it says them, method and lengths have defaults too, and GRPO's accumulation is the least that
    holds one group.
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for key, value in _flat(layer.values).items():
            if _hidden(key, values):
                continue
            values[key], origins[key] = value, layer.origin
    if not any(layer.origin.startswith("file ") for layer in layers):
        _add_defaults(values)
    _refuse_other_methods(layers[0], values.get("method"))
    job = parse_job(_nested(values), source=_source(layers))
    known = _flat({key: value for key, value in job_to_dict(job).items() if value is not None or key == "lora"})
    return SourcedJob(job=job, origins={key: origins.get(key, "default") for key in known})


def _add_defaults(values: dict[str, object]) -> None:
    if values.setdefault("method", DEFAULT_METHOD) != "grpo":
        values.setdefault("max_length", DEFAULT_LENGTH)
        return
    values.setdefault("max_prompt_length", DEFAULT_PROMPT)
    values.setdefault("max_completion_length", DEFAULT_COMPLETION)
    values.setdefault("num_generations", DEFAULT_GENERATIONS)
    if "steps_per_generation" not in values:
        values.setdefault("gradient_accumulation_steps", _least_accumulation(values))


def _least_accumulation(values: Mapping[str, object]) -> int:
    group, batch = values["num_generations"], values.get("per_device_train_batch_size", 1)
    if type(group) is not int or type(batch) is not int or group < 1 or batch < 1:
        return 1  # refused by name when the job is read
    return group // gcd(group, batch)


def _refuse_other_methods(flags: Layer, method: object) -> None:
    """A flag that this method has no use for is a mistake; in a file or recipe it may be a leftover."""
    if flags.origin != "flag":
        return
    useless = NOT_GRPO if method == "grpo" else ONLY_GRPO
    for key in useless:
        if key in flags.values:
            other = "--max-prompt-length and --max-completion-length" if method == "grpo" else "--method grpo"
            raise UsageError(f"{flag_of(key)} means nothing with method {method}", f"use {other}")


def applicable(flags: Layer, method: object) -> Layer:
    """The flags that `method` has a use for: a recipe's stages have different methods and are given the same flags."""
    useless = NOT_GRPO if method == "grpo" else ONLY_GRPO
    return Layer(origin=flags.origin, values={key: value for key, value in flags.values.items() if key not in useless})


def recipe_stages(recipe: Recipe, layers: list[Layer]) -> list[tuple[Stage, SourcedJob]]:
    """Each stage's job under the same stronger layers, flags first."""
    flags, *others = layers
    return [
        (stage, combine([own, *others, Layer(origin=f"recipe {recipe.name}", values=stage.job)]))
        for stage, own in zip(recipe.stages, recipe_flags(recipe, flags), strict=True)
    ]


def recipe_flags(recipe: Recipe, flags: Layer) -> list[Layer]:
    """For each stage the flags that its method has a use for. Raises UsageError for a flag that no stage has a use for."""
    methods = [flags.values.get("method", stage.job.get("method")) for stage in recipe.stages]
    for key in flags.values:
        if not any(key in applicable(flags, method).values for method in methods):
            raise UsageError(f"{flag_of(key)} means nothing to recipe {recipe.name}, whose method is {methods[0]}")
    return [applicable(flags, method) for method in methods]


def _flat(values: Mapping[str, object]) -> dict[str, object]:
    """`{"lora": {"r": 8}}` -> `{"lora.r": 8}`; an empty or absent section stays as it is."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if key in ("lora", "rollout") and isinstance(value, Mapping) and value:
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return flat


def _hidden(key: str, stronger: Mapping[str, object]) -> bool:
    """Whether a stronger layer said this, or said that there is no LoRA at all, or has one where this says there is none."""
    section = key.partition(".")[0]
    if key in stronger or (section != key and section in stronger):
        return True
    return key in ("lora", "rollout") and any(other.startswith(f"{key}.") for other in stronger)


def _nested(flat: Mapping[str, object]) -> dict[str, object]:
    nested: dict[str, object] = {}
    for key, value in flat.items():
        section, dot, name = key.partition(".")
        if dot:
            inner = nested.setdefault(section, {})
            assert isinstance(inner, dict)
            inner[name] = value
        else:
            nested[key] = value
    return nested


def _source(layers: list[Layer]) -> str:
    """What error messages begin with: every place that the values came from."""
    return " + ".join(dict.fromkeys(layer.origin for layer in reversed(layers) if layer.values)) or "job"
