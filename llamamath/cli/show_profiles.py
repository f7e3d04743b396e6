"""Profiles for people: short tables, and one profile in full with its sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

from llamamath.cli.layout import print_columns, print_heading, print_pairs, print_paragraph, print_points
from llamamath.profiles.gpus import Gpu
from llamamath.profiles.models import ModelProfile
from llamamath.profiles.recipes import Recipe
from llamamath.units import GIB, format_bytes, format_count

if TYPE_CHECKING:
    from rich.console import Console

Profile = Gpu | ModelProfile | Recipe


def documents_of(found: Sequence[Profile]) -> dict[str, object]:
    """The profiles as JSON values, by kind; sizes in bytes, rates per second."""
    kinds: dict[str, list[object]] = {}
    for profile in found:
        kind = "gpus" if isinstance(profile, Gpu) else "models" if isinstance(profile, ModelProfile) else "recipes"
        kinds.setdefault(kind, []).append(_document(profile))
    return dict(kinds)


def _document(profile: Profile) -> object:
    if isinstance(profile, ModelProfile):
        values = {
            name: getattr(profile, name) for name in ("id", "license", "instruct", "parameters", "parameters_source", "source", "accessed")
        }
        return values | {"aliases": list(profile.aliases), "checked": list(profile.checked), "config": dict(profile.config)}
    values = cast(dict[str, object], _plain(asdict(profile)))
    if isinstance(profile, Gpu):
        values |= {"usable_bytes": profile.usable_bytes, "usable_basis": profile.usable_basis}
    return values


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def print_lists(console: Console, found: Sequence[Profile]) -> None:
    """One table for each kind that is there."""
    gpus = [one for one in found if isinstance(one, Gpu)]
    models = [one for one in found if isinstance(one, ModelProfile)]
    recipes = [one for one in found if isinstance(one, Recipe)]
    if gpus:
        rows = [(gpu.name, f"{gpu.usable_bytes / GIB:.2f}", _capability(gpu), _tera(gpu.tensor_flops_per_second)) for gpu in gpus]
        _print_table(console, "GPUs", ("name", "usable GiB", "capability", "TFLOP/s"), rows)
    if models:
        rows = [(model.id, format_count(model.parameters), model.family, model.license) for model in models]
        _print_table(console, "models", ("id", "parameters", "family", "licence"), rows)
    if recipes:
        lines = [(one.name, one.base_model, ", ".join(stage.name for stage in one.stages)) for one in recipes]
        _print_table(console, "recipes", ("name", "model", "stages"), lines)
    console.print("`llamamath profiles NAME` shows one with its sources")


def _print_table(console: Console, title: str, header: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    right = "".join("r" if name in ("usable GiB", "parameters", "TFLOP/s") else "l" for name in header)
    print_heading(console, f"{title} ({len(rows)})", "bold cyan")
    print_columns(console, header, rows, right=right)
    console.print()


def _capability(gpu: Gpu) -> str:
    return "unknown" if gpu.compute_capability is None else ".".join(str(part) for part in gpu.compute_capability)


def _tera(rate: float | None) -> str:
    return "unknown" if rate is None else f"{rate / 1e12:,.1f}"


def print_one(console: Console, found: Profile) -> None:
    """Everything about one profile, and where it comes from."""
    if isinstance(found, Gpu):
        _print_gpu(console, found)
    elif isinstance(found, ModelProfile):
        _print_model(console, found)
    else:
        _print_recipe(console, found)


def _print_gpu(console: Console, gpu: Gpu) -> None:
    rate, link = gpu.memory_bandwidth_bytes_per_second, gpu.host_to_device_bytes_per_second
    low, high = gpu.price_usd_per_hour_low, gpu.price_usd_per_hour_high
    pairs = [
        ("memory", f"{gpu.nominal_gb} GB on the box, {format_bytes(gpu.usable_bytes)} usable: {gpu.usable_basis}"),
        ("capability", _capability(gpu)),
        ("tensor rate", f"{_tera(gpu.tensor_flops_per_second)} TFLOP/s, dense"),
        ("bandwidth", "unknown" if rate is None else f"{rate / 1e9:,.0f} GB/s"),
        ("from host", "unknown" if link is None else f"{link / 1e9:,.1f} GB/s"),
        (
            "rent",
            "unknown" if low is None or high is None else f"{low:g} to {high:g} USD an hour ({gpu.price_source}, {gpu.price_accessed})",
        ),
        ("source", f"{gpu.source}, accessed {gpu.accessed}"),
    ]
    if gpu.unverified:
        pairs.append(("not looked up", ", ".join(gpu.unverified)))
    if gpu.notes:
        pairs.append(("note", gpu.notes))
    print_heading(console, gpu.name)
    print_pairs(console, pairs)


def _print_model(console: Console, model: ModelProfile) -> None:
    pairs = [
        ("parameters", f"{model.parameters:,} ({model.parameters_source})"),
        ("family", model.family + (", tuned to follow instructions" if model.instruct else "")),
        ("licence", model.license),
        ("also called", ", ".join(model.aliases) or "-"),
        ("source", f"{model.source}, accessed {model.accessed}"),
        ("checked with", ", ".join(model.checked)),
    ]
    print_heading(console, model.id)
    print_pairs(console, pairs)


def _print_recipe(console: Console, recipe: Recipe) -> None:
    print_heading(console, recipe.name)
    print_pairs(
        console,
        [
            ("paper", recipe.title),
            ("source", f"{recipe.source}, accessed {recipe.accessed}"),
            ("model", recipe.base_model),
            ("licence", recipe.licence),
            ("paper's GPU", recipe.gpu),
        ],
    )
    for stage in recipe.stages:
        print_heading(console, f"stage {stage.name}")
        data = ", ".join(f"{item.name} ({item.num_samples:,})" for item in stage.datasets)
        rewards = ", ".join(f"{reward.name} {reward.weight:g}" for reward in stage.rewards)
        pairs = [
            ("data", data),
            ("learning rate", f"{stage.learning_rate:g}, {stage.lr_scheduler_type}"),
            ("epochs", f"{stage.num_train_epochs:g}"),
        ]
        print_pairs(console, pairs + ([("rewards", rewards)] if rewards else []))
    if recipe.claims:
        print_heading(console, "what the paper states")
        claims = [f"{c.quantity.replace('_', ' ')}: {c.value:g} {c.unit} ({c.location}; {c.basis})" for c in recipe.claims]
        print_points(console, claims)
    print_paragraph(console, f"`llamamath fit --recipe {recipe.name} --gpu rtx3090` judges it and says where the paper contradicts itself")
