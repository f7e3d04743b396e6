"""Models known by name: `models.toml`, read once when it is first needed.

A profile is a configuration with its licence, count and source. What the configuration means is the planner's business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """One model of `models.toml`. `config` has transformers' own keys; `parameters` counts tied embeddings once."""

    id: str
    """The hub id, such as `meta-llama/Llama-3.2-1B`."""
    aliases: tuple[str, ...]
    license: str
    """The hub's licence tag, such as `apache-2.0` or `llama3.2`."""
    instruct: bool
    """Tuned to follow instructions, so it has a chat template."""
    config: Mapping[str, object] = field(hash=False, repr=False)
    parameters: int
    parameters_source: str
    """`published`, or `computed` from the configuration where no published count was found."""
    source: str
    """Where the configuration is published."""
    accessed: str
    """The day (YYYY-MM-DD) the row was compared with `checked`."""
    checked: tuple[str, ...]
    """What it was compared with; the names are explained at the top of models.toml."""

    @property
    def family(self) -> str:
        """transformers' `model_type`."""
        return str(self.config["model_type"])

    @property
    def short_name(self) -> str:
        """The id without its organisation."""
        return self.id.rpartition("/")[2]


@cache
def all_models() -> tuple[ModelProfile, ...]:
    """Every profile, in the order of `models.toml`."""
    import tomllib

    text = (Path(__file__).parent / "models.toml").read_text(encoding="utf-8")
    profiles: dict[str, ModelProfile] = {}
    for row in tomllib.loads(text)["model"]:
        base = profiles[row["config_of"]] if "config_of" in row else None
        config = {} if base is None else dict(base.config)
        config |= row.get("config", {})
        config |= dict.fromkeys(row.get("null_keys", ()))
        profiles[row["id"]] = ModelProfile(
            id=row["id"],
            aliases=tuple(row.get("aliases", ())),
            license=row["license"] if base is None or "license" in row else base.license,
            instruct=row["instruct"],
            config=config,
            parameters=row["parameters"] if base is None else base.parameters,
            parameters_source=row["parameters_source"] if base is None else base.parameters_source,
            source=row["source"],
            accessed=row["accessed"],
            checked=tuple(row["checked"]),
        )
    return tuple(profiles.values())


def model_names() -> tuple[str, ...]:
    """The ids of all profiles."""
    return tuple(profile.id for profile in all_models())


def find_model(name: str) -> ModelProfile | None:
    """The profile that `name` means, or None.

    Case does not matter, nor which of `- _ . :` or a space parts the words, nor whether a letter and a digit are parted at all; the
    organisation may be left out, but a different one is a different model: `llama-3.2-1b`, `Llama3.2:1B`,
    `meta-llama/Llama-3.2-1B`.
    """
    name = name.strip().removeprefix("https://").removeprefix("huggingface.co/").removesuffix("/")
    organisation, _, short = name.rpartition("/")
    return _index().get((organisation.casefold(), words(short)))


def words(name: str) -> tuple[str, ...]:
    """`name` as runs of letters and runs of digits, so that spellings compare equal but 1.5B and 15B do not."""
    return tuple(re.findall(r"[a-z]+|[0-9]+", name[:200].casefold()))


@cache
def _index() -> dict[tuple[str, tuple[str, ...]], ModelProfile]:
    """(organisation or "", words of the name) -> profile, for ids and aliases. Ids win over aliases."""
    index: dict[tuple[str, tuple[str, ...]], ModelProfile] = {}
    for names in ("id", "aliases"):
        for profile in all_models():
            for name in (profile.id,) if names == "id" else profile.aliases:
                organisation, _, short = name.rpartition("/")
                index.setdefault((organisation.casefold(), words(short)), profile)
                index.setdefault(("", words(short)), profile)
    return index
