"""From a GPU's name, as people type it or as the driver gives it, to its profile. Never to the wrong one.

A name is reduced to a key (`rtx3080ti`, `RTX-3080-Ti` and `NVIDIA GeForce RTX 3080 Ti` are all `3080ti`), whether it says laptop, and a
memory size if it gives one (`3080-12gb`). Keys must be equal; only error messages use likeness.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from llamamath.errors import UnknownNameError
from llamamath.profiles.gpus import Gpu, all_gpus

MEMORY_TOLERANCE = 0.12
"""How far the driver's total may be from the profile's: ECC takes 1/16, and a card of the next size is a third away."""

_SIZE = re.compile(r"(?<![0-9a-z])(\d{1,3})\s*g(?:i?b)?(?![0-9a-z])|(?<!\d)(\d{1,3})\s*gi?b(?![0-9a-z])")
_LAPTOP_WORDS = frozenset({"laptop", "mobile", "notebook"})
_EMPTY_WORDS = frozenset({"nvidia", "geforce", "tesla", "rtx", "gtx", "desktop", "graphics", "gpu", "card", "generation"})
_KNOWN_WORD = re.compile("|".join(sorted(_LAPTOP_WORDS | _EMPTY_WORDS)))
_WORD = re.compile(r"[a-z]+|\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class NameParts:
    """What a name says. `size_gb` is None if it gives none."""

    key: str
    laptop: bool
    size_gb: int | None


def split_name(name: str) -> NameParts:
    """`"NVIDIA GeForce RTX 3080 Ti Laptop GPU 16GB"` -> key `3080ti`, laptop, 16."""
    text = name[:200].casefold().replace("(r)", " ").replace("(tm)", " ")
    size = _SIZE.search(text)
    if size:
        text = f"{text[: size.start()]} {text[size.end() :]}"
    words = _WORD.findall(_KNOWN_WORD.sub(r" \g<0> ", text))
    return NameParts(
        key="".join(word for word in words if word not in _EMPTY_WORDS and word not in _LAPTOP_WORDS),
        laptop=any(word in _LAPTOP_WORDS for word in words),
        size_gb=int(size.group(1) or size.group(2)) if size else None,
    )


@cache
def _index() -> dict[str, tuple[Gpu, ...]]:
    """Key -> profiles it may stand for, in the order of the file."""
    index: dict[str, dict[str, Gpu]] = {}
    for gpu in all_gpus():
        for name in (gpu.name, gpu.nvml_name, *gpu.aliases):
            index.setdefault(split_name(name).key, {})[gpu.name] = gpu
    return {key: tuple(gpus.values()) for key, gpus in index.items()}


def look_up_gpu(name: str) -> tuple[Gpu, tuple[str, ...]]:
    """The profile for `name` and remarks on the choice. Raises UnknownNameError with the closest names.

    Laptop and desktop parts are different chips: a name without "laptop" never finds one. A name that fits several sizes (`3080`, `a100`)
    stands for the one with the least memory, on which a plan holds for the others too, then for the first in the file; a remark says so.
    A size picks: `3080-12gb`, `a100 80gb`. A size that no such card has is an error, not a near miss.
    """
    parts = split_name(name)
    kin = _index().get(parts.key, ())
    fitting = [gpu for gpu in kin if gpu.laptop == parts.laptop and parts.size_gb in (None, gpu.nominal_gb)]
    if not fitting:
        raise _unknown(name, parts, kin)
    exact = [gpu for gpu in fitting if gpu.name.casefold() == name.strip().casefold()]
    chosen = exact[0] if exact else min(fitting, key=lambda gpu: gpu.nominal_gb)
    others = [] if exact else [gpu for gpu in fitting if gpu is not chosen]
    if not others:
        return chosen, ()
    names = ", ".join(f"{gpu.name} ({gpu.nominal_gb} GB)" for gpu in others)
    taken = f"{name.strip()!r} is taken as {chosen.name} ({chosen.nominal_gb} GB), the one with the least memory"
    return chosen, (f"{taken}; also by that name: {names}",)


def match_nvml(nvml_name: str, total_bytes: int | None) -> tuple[Gpu | None, str]:
    """The profile of the card that the driver calls `nvml_name` and that has `total_bytes`, with the reason; None rather than a guess."""
    parts = split_name(nvml_name)
    same = [gpu for gpu in _index().get(parts.key, ()) if gpu.laptop == parts.laptop and _same_driver_name(gpu, parts)]
    if not same:
        return None, f"no profile is called {nvml_name!r}: rates unknown"
    if total_bytes is None:
        if len(same) == 1:
            return same[0], "by name"
        return None, f"{nvml_name!r} comes in several sizes and this one's is not known: rates unknown"

    def distance(gpu: Gpu) -> float:
        return abs(total_bytes / gpu.total_bytes - 1.0) if gpu.total_bytes else 1.0

    nearest = min(same, key=distance)
    if distance(nearest) > MEMORY_TOLERANCE:
        return None, f"no profile of {nvml_name!r} has this much memory: rates unknown"
    return nearest, "by name and memory"


def _same_driver_name(gpu: Gpu, parts: NameParts) -> bool:
    """Aliases are for people; the driver's name must be the profile's own, whatever size either mentions."""
    return split_name(gpu.nvml_name).key == parts.key


def _unknown(name: str, parts: NameParts, kin: Iterable[Gpu]) -> UnknownNameError:
    """Cards by that name in another size or form first (those of the size asked for before the rest), then names that look alike."""
    relatives = sorted(kin, key=lambda gpu: (gpu.nominal_gb != parts.size_gb, gpu.laptop != parts.laptop))
    closest = [gpu.name for gpu in relatives]
    for key in difflib.get_close_matches(parts.key, list(_index()), n=5, cutoff=0.6) if parts.key else ():
        alike = sorted(_index()[key], key=lambda gpu: gpu.laptop != parts.laptop)
        closest += [gpu.name for gpu in alike if gpu.name not in closest]
    hint = "`llamamath profiles` lists the known GPUs; for another, give its memory with a unit, such as 12GiB"
    if relatives and parts.size_gb is not None:
        hint = "; ".join(f"{gpu.name} has {gpu.nominal_gb} GB" for gpu in relatives[:3])
    elif name.strip().isdecimal() and int(name.strip()[:9]) < 1000:
        hint = f"for a memory size, give the unit: {name.strip()}GiB"
    return UnknownNameError("GPU", name, closest[:3], hint)
