"""Recipes: the papers' training runs as job-file keys, with what the papers leave open, claim, and contradict.

The data lie in `recipe_data/*.toml`. A file may have a `[common]` table that every recipe in it inherits: its lists come first, its
other values are overridden, and `stage` is merged key by key. Numbers in `reason` and `finding` that follow from a model's configuration
are `{placeholders}`, which `planner.paper` fills in: this package knows no architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from llamamath.errors import UnknownNameError, closest_names
from llamamath.profiles.toml_data import list_toml, read_toml

_FOLDER = "recipe_data"
_UNITS_BYTES = {"GB": 10**9, "GiB": 2**30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """One reward function of a GRPO stage. name: `correctness`, `format` or `cosine`."""

    name: str
    weight: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """One data set of a stage and how many of its samples are used."""

    name: str
    url: str
    split: str
    num_samples: int
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperClaim:
    """A figure the paper states, where, and what it rests on.

    quantity: gpu_memory, host_memory, training_time, training_cost, trainable_parameters, accuracy or examples.
    """

    quantity: str
    value: float
    unit: str
    basis: str
    location: str
    equation: str = ""
    """The paper's equation it comes from, if any: `eq. 4` (proposal) or `eq. 6` (pilot)."""

    @property
    def value_bytes(self) -> int | None:
        """The claim in bytes, where it is one of memory."""
        factor = _UNITS_BYTES.get(self.unit)
        return None if factor is None else round(self.value * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenItem:
    """Something the paper leaves open, and our choice."""

    topic: str
    choice: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """A claim of the paper that does not hold together, with the arithmetic; `finding` may have placeholders."""

    claim: str
    finding: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One training run of a recipe. `job` has exactly the keys of a job file; the rest is what training needs beside it."""

    name: str
    job: Mapping[str, object]
    learning_rate: float
    lr_scheduler_type: str
    num_train_epochs: float
    num_samples: int
    datasets: tuple[TrainingSet, ...]
    temperature: float | None = None
    """Sampling temperature of the rollouts (grpo)."""
    rewards: tuple[Reward, ...] = ()
    starts_from: str | None = None
    """Name of the earlier stage whose adapter this one continues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A paper's training, stage by stage."""

    name: str
    title: str
    base_model: str
    licence: str
    gpu: str
    source: str
    accessed: str
    stages: tuple[Stage, ...]
    claims: tuple[PaperClaim, ...]
    open: tuple[OpenItem, ...]
    contradictions: tuple[Contradiction, ...]
    aliases: tuple[str, ...] = ()

    def claim(self, quantity: str) -> PaperClaim | None:
        """The paper's first (main) figure for one quantity, if it states any."""
        return next((claim for claim in self.claims if claim.quantity == quantity), None)


def recipes() -> tuple[Recipe, ...]:
    """All recipes, in the order of their files. Fresh objects: a caller may change the jobs' dictionaries."""
    return tuple(_recipe(row, content.get("common", {})) for content in _files() for row in content["recipe"])


def recipe_names() -> tuple[str, ...]:
    """The names of all recipes, aliases left out."""
    return tuple(row["name"] for content in _files() for row in content["recipe"])


def find_recipe(name: str) -> Recipe:
    """The recipe of that name or alias, in any case. Raises UnknownNameError with the closest names."""
    wanted = name.strip().casefold()
    known: list[str] = []
    for content in _files():
        for row in content["recipe"]:
            names = [row["name"], *row.get("aliases", [])]
            if wanted in names:
                return _recipe(row, content.get("common", {}))
            known += names
    raise UnknownNameError("recipe", name, closest_names(name, known), f"known: {', '.join(recipe_names())}")


def _files() -> list[dict[str, Any]]:
    return [read_toml(_FOLDER, name) for name in list_toml(_FOLDER)]


def _recipe(row: Mapping[str, Any], common: Mapping[str, Any]) -> Recipe:
    stages = row.get("stages") or [row["stage"]]
    return Recipe(
        name=row["name"],
        aliases=tuple(row.get("aliases", ())),
        base_model=row["base_model"],
        accessed=str({**common, **row}["accessed"]),
        stages=tuple(_stage(stage, common.get("stage", {})) for stage in stages),
        claims=tuple(PaperClaim(**claim) for claim in _both("claim", common, row)),
        open=tuple(OpenItem(**item) for item in _both("open", common, row)),
        contradictions=tuple(Contradiction(**item) for item in _both("contradiction", common, row)),
        **{key: {**common, **row}[key] for key in ("title", "licence", "gpu", "source")},
    )


def _both(key: str, common: Mapping[str, Any], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*common.get(key, ()), *row.get(key, ())]


def _stage(row: Mapping[str, Any], common: Mapping[str, Any]) -> Stage:
    values = deepcopy({**common, **row})
    values["job"] = deepcopy({**common.get("job", {}), **row["job"]})
    values["datasets"] = tuple(TrainingSet(**item) for item in values["datasets"])
    values["rewards"] = tuple(Reward(**item) for item in values.get("rewards", ()))
    return Stage(**values)
