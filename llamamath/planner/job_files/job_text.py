"""A Job -> the plain values and the YAML text that `job_file` reads back to the same Job. Written without a YAML library."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

from llamamath.planner.job import JOB_FIELDS, LORA_FIELDS, Job, Lora

_COMMENTS = {
    "model": "a profile, a local directory or config.json, or a hub id",
    "method": "sft | grpo | dpo",
    "stack": "whose memory habits",
    "quantization": "none | int8 | nf4 | nf4-dq",
    "per_device_train_batch_size": "sequences (DPO: pairs)",
    "max_length": "tokens, prompt + completion (sft, dpo)",
    "max_prompt_length": "tokens (grpo)",
    "max_completion_length": "tokens (grpo)",
    "num_generations": "completions per prompt (grpo)",
    "padding": "true: ragged batches with a mask; false: packed",
    "kbit_preparation": "peft.prepare_model_for_kbit_training was applied",
    "loss": "chunked | full | liger",
    "offload": "checkpoints | weights | optimizer",
    "mixed_precision": "autocast; absent: what the stack does",
    "per_device_eval_batch_size": "evaluation during training",
    "num_images": "images per sequence",
}
_PLAIN = re.compile(r"(?:[A-Za-z_/]|\.{1,2}/)[A-Za-z0-9_./@+-]*")
_RESERVED = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}  # words that YAML 1.1 or 1.2 reads as something else
_ALWAYS_WRITTEN = JOB_FIELDS[: JOB_FIELDS.index("rollout") + 1]
_DEFAULTS = {field.name: field.default for field in fields(Job)}


def job_to_dict(job: Job) -> dict[str, object]:
    """Every field as plain JSON values, in the order of design.md. `parse_job` reads it back to an equal Job."""
    values: dict[str, object] = {name: getattr(job, name) for name in JOB_FIELDS}
    values["lora"] = None if job.lora is None else lora_to_dict(job.lora)
    values["offload"] = list(job.offload)
    values["rollout"] = {"engine": job.rollout.engine}
    return values


def lora_to_dict(lora: Lora) -> dict[str, object]:
    """The LoRA section as plain JSON values."""
    values: dict[str, object] = {name: getattr(lora, name) for name in LORA_FIELDS}
    if isinstance(lora.target_modules, tuple):
        values["target_modules"] = list(lora.target_modules)
    return values


def dump_job(job: Job) -> str:
    """The job as YAML that a person can read and edit: design.md's keys always, the others where they are not the default."""
    lines = []
    for name, value in job_to_dict(job).items():
        if name not in _ALWAYS_WRITTEN and value == _DEFAULTS[name]:
            continue
        if name == "lora" and isinstance(value, dict) and not value["use_dora"]:
            del value["use_dora"]
        line = f"{name}: {yaml_value(value)}"
        comment = "full fine-tuning" if name == "lora" and value is None else _COMMENTS.get(name)
        lines.append(f"{line:<46} # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


def yaml_value(value: Any) -> str:
    """One value in YAML's flow style, read the same by YAML 1.1 and 1.2."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        mantissa, exponent, power = repr(value).partition("e")
        return mantissa + (".0" if exponent and "." not in mantissa else "") + exponent + power
    if isinstance(value, list):
        return f"[{', '.join(yaml_value(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.casefold() not in _RESERVED
        return value if plain else json.dumps(value, ensure_ascii=False)
    return str(value)
