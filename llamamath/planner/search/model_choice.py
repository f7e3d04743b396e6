"""Which models `auto` considers, and in which order.

The rule: instruction-tuned text models whose makers published a GSM8K score (`profiles/model_scores.toml`): that is what is known to do
mathematics. Best score first, the smaller model first among equals. Objective `model`: the largest first. Objective `cost`: the smallest
first. The first that stays inside the budget is taken. For images: the instruction-tuned vision models, the largest first (`cost`: last).

Scores come from different prompts, so the order between families is rough; within a family it is that of size. A score says how good
the model is before training, which decides more of the result than any training that fits a consumer card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamamath.profiles.models import ModelProfile, all_models, find_model, words
from llamamath.profiles.toml_data import read_toml

LEAST_BITS_PER_PARAMETER = 4
"""No quantisation here stores a weight in less: a model with more than this does not fit, whatever else is chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScore:
    """Published accuracy on GSM8K, per cent, before any training."""

    model: str
    gsm8k: float
    setting: str
    source: str
    checked: str
    accessed: str


def model_scores() -> Mapping[str, ModelScore]:
    """Model id -> its published score."""
    rows = read_toml("model_scores.toml")["score"]
    return {row["model"]: ModelScore(**{**row, "accessed": str(row["accessed"])}) for row in rows}


def ranked_models(objective: str, *, images: bool = False) -> tuple[ModelProfile, ...]:
    """The models that `auto` tries, in order."""
    scores = {} if images else model_scores()
    tuned = [profile for profile in all_models() if profile.instruct and (profile.family == "mllama" if images else profile.id in scores)]
    if objective == "cost":
        tuned.sort(key=lambda profile: (profile.parameters, profile.id))
    elif objective == "model" or images:
        tuned.sort(key=lambda profile: (-profile.parameters, profile.id))
    else:
        tuned.sort(key=lambda profile: (-scores[profile.id].gsm8k, profile.parameters, profile.id))
    return tuple(tuned)


def least_weight_bytes(profile: ModelProfile, quantization: str | None, width: int) -> int:
    """A lower bound of the weights' bytes without reading the configuration: parameters in 4 bits, or in `width` bytes if unquantised."""
    if quantization == "none":
        return profile.parameters * width
    return profile.parameters * (8 if quantization == "int8" else LEAST_BITS_PER_PARAMETER) // 8


def smaller_models(model: str) -> tuple[ModelProfile, ...]:
    """Smaller profiles of the same line and tuning as `model`, the largest first; empty for a model without a profile.

    Same line: the same family and the same first two words of the name, so Llama-3.2 is in line with Llama-3.1 and not with Llama-2.
    """
    known = find_model(model)
    if known is None:
        return ()
    line = words(known.short_name)[:2]
    kin = [
        profile
        for profile in all_models()
        if (profile.family, profile.instruct) == (known.family, known.instruct)
        and words(profile.short_name)[:2] == line
        and profile.parameters < known.parameters
    ]
    return tuple(sorted(kin, key=lambda profile: (-profile.parameters, profile.id)))
