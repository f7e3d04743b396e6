"""`llamamath profiles`: the GPUs, models and recipes that are known by name, each with where its figures come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llamamath.cli.options import Json
from llamamath.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from llamamath.profiles.gpus import Gpu
    from llamamath.profiles.models import ModelProfile
    from llamamath.profiles.recipes import Recipe

KINDS = ("gpus", "models", "recipes")


def profiles(
    names: Annotated[list[str] | None, typer.Argument(metavar="KIND NAME", help="A kind (gpus, models, recipes), a name, or both.")] = None,
    json_output: Json = False,
) -> None:
    """List what is known by name, or show one GPU, model or recipe with its sources.

    `llamamath profiles`, `llamamath profiles gpus`, `llamamath profiles rtx3090`, `llamamath profiles recipes llama-math-90b`.
    """
    from llamamath.cli.output import people, print_json
    from llamamath.cli.show_profiles import documents_of, print_lists, print_one

    words = list(names or ())
    kind = words.pop(0) if words and words[0] in KINDS else None
    if len(words) > 1:
        raise UsageError(f"one name at a time, not {len(words)}", "put a name with blanks in quotes")
    if words:
        found = find_any(words[0], kind)
        if json_output:
            print_json({"schema_version": 1, **documents_of([found])})
        else:
            print_one(people(), found)
        return
    chosen = everything(kind)
    if json_output:
        print_json({"schema_version": 1, **documents_of(chosen)})
    else:
        print_lists(people(), chosen)


def everything(kind: str | None) -> list[Gpu | ModelProfile | Recipe]:
    """All profiles of one kind, or of every kind."""
    from llamamath.profiles.gpus import all_gpus
    from llamamath.profiles.models import all_models
    from llamamath.profiles.recipes import recipes

    found: list[Gpu | ModelProfile | Recipe] = []
    if kind in (None, "gpus"):
        found += all_gpus()
    if kind in (None, "models"):
        found += all_models()
    if kind in (None, "recipes"):
        found += recipes()
    return found


def find_any(name: str, kind: str | None) -> Gpu | ModelProfile | Recipe:
    """The profile that `name` means: recipes first, whose names are exact, then models, then GPUs. Raises UnknownNameError."""
    from llamamath.errors import closest_names
    from llamamath.profiles.gpu_names import look_up_gpu
    from llamamath.profiles.models import find_model, model_names
    from llamamath.profiles.recipes import find_recipe, recipe_names

    closest: list[str] = []
    if kind in (None, "recipes"):
        try:
            return find_recipe(name)
        except UnknownNameError as error:
            closest += error.closest
    if kind in (None, "models"):
        model = find_model(name)
        if model is not None:
            return model
        closest += closest_names(name, model_names())
    if kind in (None, "gpus"):
        try:
            return look_up_gpu(name)[0]
        except UnknownNameError as error:
            closest += error.closest
    what = {"gpus": "GPU", "models": "model", "recipes": "recipe"}.get(kind or "", "profile")
    known = f"; recipes: {', '.join(recipe_names())}" if kind == "recipes" else ""
    raise UnknownNameError(what, name, tuple(closest[:6]), f"`llamamath profiles` lists all of them{known}")
