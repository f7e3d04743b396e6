"""A job in one line, and where each of its values came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llamamath.cli.layout import print_heading, print_pairs
from llamamath.planner.job_files.job_text import job_to_dict, yaml_value

if TYPE_CHECKING:
    from rich.console import Console

    from llamamath.planner.job import Job


def title_of(job: Job, name: str = "") -> str:
    """`Llama-3.2-3B-Instruct, GRPO, nf4-dq, LoRA 16, batch 1 x 8, 512 + 1,024 tokens, groups of 8`. name: the model's, if it is known."""
    name = (name or job.model).rstrip("/")
    model = name.rpartition("/")[2] or name
    tuning = f"LoRA {job.lora.r}" if job.lora else "full fine-tuning"
    parts = [model, job.method.upper(), job.quantization if job.quantization != "none" else job.dtype, tuning]
    parts.append(f"batch {job.per_device_train_batch_size} x {job.gradient_accumulation_steps}")
    if job.method == "grpo":
        parts.append(f"{job.max_prompt_length:,} + {job.max_completion_length:,} tokens")
        parts.append(f"groups of {job.num_generations}")
    else:
        parts.append(f"{job.max_length:,} tokens")
    if job.offload:
        parts.append(f"offloading {', '.join(job.offload)}")
    return ", ".join(parts)


def print_origins(console: Console, job: Job, origins: Mapping[str, str]) -> None:
    """Every value of the job, by where it came from: flags first, defaults last."""
    values = flat_values(job)
    off = [key for key, origin in origins.items() if origin == "default" and key in values and not values[key]]
    places = sorted(dict.fromkeys(origins.values()), key=_rank)
    pairs = []
    for place in places:
        stated = [f"{key} {_value(values[key])}" for key, origin in origins.items() if origin == place and key in values and key not in off]
        if place == "default" and off:
            stated.append("the rest off or zero")
        if stated:
            pairs.append((place if place != "default" else "by default", "; ".join(stated)))
    print_heading(console, "where the values come from:")
    print_pairs(console, pairs)


def flat_values(job: Job) -> dict[str, object]:
    """The job's keys, `lora.r` for nested ones; values that are absent left out, save `lora: null`."""
    flat: dict[str, object] = {}
    for key, value in job_to_dict(job).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        elif value is not None or key == "lora":
            flat[key] = value
    return flat


def _value(value: object) -> str:
    return "none" if value in (None, []) else yaml_value(value)


def _rank(place: str) -> tuple[int, str]:
    order = ("argument", "flag", "file", "recipe", "plan", "data", "chosen", "given", "default")
    return next((index for index, word in enumerate(order) if place.startswith(word)), len(order)), place


def changes_of(before: Job, after: Job) -> str:
    """`per_device_train_batch_size 4, lora.r 8`: the values of `after` that are different."""
    old, new = flat_values(before), flat_values(after)
    return ", ".join(f"{key} {_value(new.get(key))}" for key in dict.fromkeys([*new, *old]) if old.get(key) != new.get(key))
