"""Job files: a mapping, YAML or JSON lines -> Job, with every value checked; and back. design.md is the contract.

What a key's absence means: as in `job.py`, except for three that depend on the rest: `loss` and `lora.dtype` are what the stack does by
itself (`stacks.toml`), `beta` of a DPO job is TRL's 0.1. A value that is written down is always kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from math import gcd
from pathlib import Path
from typing import Any, BinaryIO

from llamamath.errors import FieldError, LlamamathError, UnknownNameError, UsageError, closest_names, shorten
from llamamath.planner import job as vocabulary
from llamamath.planner.job import Job, Lora, Rollout
from llamamath.planner.job_files.job_fields import (
    Reader,
    number,
    one_of,
    optional,
    some_of,
    target_modules,
    text,
    true_or_false,
    whole_number,
)
from llamamath.planner.job_files.yaml_json import MAX_TEXT_BYTES, decode, parse_json, parse_yaml, read_text
from llamamath.planner.stack import find_stack

MAX_BATCH = 65_536
MAX_TOKENS = 2**24
DPO_BETA = 0.1
"""TRL 1.16's default of `beta` in DPOConfig (dpo_config.py:297); GRPO's is 0.0, as in `job.py`."""

_LORA_READERS: dict[str, Reader] = {
    "r": whole_number(1, 65_536),
    "lora_alpha": whole_number(1, 1_000_000),
    "lora_dropout": number(0, 1, below=True),
    "target_modules": target_modules,
    "dtype": one_of(vocabulary.DTYPES),
    "use_dora": true_or_false,
}
_ROLLOUT_READERS: dict[str, Reader] = {"engine": one_of(vocabulary.ENGINES)}
_READERS: dict[str, Reader] = {
    "model": text,
    "method": one_of(vocabulary.METHODS),
    "stack": one_of(vocabulary.STACKS),
    "quantization": one_of(vocabulary.QUANTIZATIONS),
    "dtype": one_of(vocabulary.DTYPES),
    "lora": lambda field, value: None if value is None else _section(field, value, _LORA_READERS),
    "per_device_train_batch_size": whole_number(1, MAX_BATCH),
    "gradient_accumulation_steps": whole_number(1, 1_000_000),
    "max_length": optional(whole_number(1, MAX_TOKENS)),
    "max_prompt_length": optional(whole_number(1, MAX_TOKENS)),
    "max_completion_length": optional(whole_number(1, MAX_TOKENS)),
    "num_generations": optional(whole_number(2, MAX_BATCH)),
    "beta": number(0, 1000),
    "padding": true_or_false,
    "gradient_checkpointing": true_or_false,
    "use_reentrant": true_or_false,
    "kbit_preparation": true_or_false,
    "attn_implementation": one_of(vocabulary.ATTENTIONS),
    "loss": one_of(vocabulary.LOSSES),
    "optim": one_of(vocabulary.OPTIMIZERS),
    "offload": some_of(vocabulary.OFFLOADS),
    "rollout": lambda field, value: Rollout(**_section(field, value, _ROLLOUT_READERS)),
    "mixed_precision": optional(true_or_false),
    "steps_per_generation": optional(whole_number(1, 1_000_000)),
    "num_iterations": whole_number(1, 1000),
    "precompute_ref_log_probs": true_or_false,
    "per_device_eval_batch_size": optional(whole_number(1, MAX_BATCH)),
    "num_images": whole_number(0, 1000),
    "fused_kernels": optional(true_or_false),
}

_OTHER_NAMES = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "batch_size": "per_device_train_batch_size",
    "load_in_4bit": "quantization",
    "quant": "quantization",
    "bf16": "mixed_precision",
    "fp16": "mixed_precision",
    "optimizer": "optim",
    "seq_len": "max_length",
    "max_seq_length": "max_length",
    "group_size": "num_generations",
    "activation_checkpointing": "gradient_checkpointing",
}
"""What other tools call the same thing, for the error message only."""


def parse_job(data: Mapping[str, object], *, source: str = "job") -> Job:
    """A mapping with design.md's keys -> a Job that keeps its rules. `source` begins every error message.

    Raises FieldError (a value that is not allowed, alone or beside another), UnknownNameError (a key that is not a job's), or UsageError.
    """
    try:
        if not isinstance(data, Mapping):
            raise UsageError("a job is a mapping of keys to values", "begin with model: NAME and method: sft, grpo or dpo")
        values = _read(data, _READERS, "")
        for key in ("model", "method"):
            if key not in values:
                raise FieldError(key, None, "text" if key == "model" else ", ".join(vocabulary.METHODS), hint=f"add {key}: to the job")
        job = _complete(values)
        check_job(job)
        return job
    except UsageError as error:
        error.message = f"{source}: {error.message}"
        error.args = (error.message,)
        raise


def _read(data: Mapping[Any, object], readers: Mapping[str, Reader], prefix: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in data.items():
        reader = readers.get(key) if isinstance(key, str) else None
        if reader is None:
            name = str(key)
            closest = (_OTHER_NAMES[name],) if _OTHER_NAMES.get(name) in readers else closest_names(name, readers)
            raise UnknownNameError("key", prefix + name, [prefix + known for known in closest], f"keys: {', '.join(readers)}")
        values[key] = reader(prefix + key, value)
    return values


def _section(field: str, value: Any, readers: Mapping[str, Reader]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        example = "{engine: transformers}" if field == "rollout" else "{r: 16}, or null for full fine-tuning"
        raise FieldError(field, value, f"a mapping such as {example}")
    return _read(value, readers, f"{field}.")


def _complete(values: dict[str, Any]) -> Job:
    """Fill what the stack decides, and build the Job."""
    lora = values.get("lora", {})
    if "loss" not in values or (lora is not None and "dtype" not in lora):
        stack = find_stack(values.get("stack", "trl-1.16"))
        values.setdefault("loss", stack.default_loss)
        if lora is not None:
            lora = {"dtype": stack.adapter_dtype(values.get("quantization", "nf4-dq")), **lora}
    if values["method"] == "dpo":
        values.setdefault("beta", DPO_BETA)
    values["lora"] = None if lora is None else Lora(**lora)
    return Job(**values)


def check_job(job: Job) -> None:
    """The rules between fields. Raises FieldError naming the field to change."""
    stack = find_stack(job.stack)
    if job.method not in stack.methods:
        hint = f"{', '.join(vocabulary.METHODS)} exist on stack trl-1.16"
        raise FieldError("method", job.method, f"{', '.join(stack.methods)} with stack {job.stack}", hint=hint)
    if job.loss not in stack.losses:
        raise FieldError("loss", job.loss, f"{', '.join(stack.losses)} with stack {job.stack}", hint="chunked is TRL 1.16's")
    if job.quantization != "none" and job.lora is None:
        allowed = f"LoRA settings such as {{r: 16}}, since {job.quantization} weights cannot be trained"
        raise FieldError("lora", None, allowed, hint="or set quantization: none for full fine-tuning")
    if job.kbit_preparation and job.quantization == "none":
        raise FieldError("kbit_preparation", True, "false with quantization none", hint="it prepares a quantised model")
    if job.method == "grpo":
        _check_grpo(job)
    elif job.max_length is None:
        allowed = f"a whole number from 1 to {MAX_TOKENS:,} with method {job.method}"
        raise FieldError("max_length", None, allowed, hint="set max_length to prompt + completion tokens of the longest example")


def _check_grpo(job: Job) -> None:
    for field, value in (
        ("max_prompt_length", job.max_prompt_length),
        ("max_completion_length", job.max_completion_length),
        ("num_generations", job.num_generations),
    ):
        if value is None:
            raise FieldError(field, None, "a whole number with method grpo", hint=f"set {field}")
    group, rows = job.num_generations or 0, job.generation_batch_size
    if rows % group:  # TRL 1.16, grpo_config.py: generation_batch_size % num_generations, on one process
        steps = "steps_per_generation" if job.steps_per_generation else "gradient_accumulation_steps"
        factor = group // gcd(group, job.per_device_train_batch_size)
        allowed = f"a divisor of per_device_train_batch_size x {steps} = {rows}"
        raise FieldError("num_generations", group, allowed, hint=f"or set {steps} to a multiple of {factor}")
    evaluated = job.per_device_eval_batch_size
    if evaluated is not None and evaluated % group:  # the same rule for evaluation batches
        allowed = f"a multiple of num_generations = {group}"
        raise FieldError("per_device_eval_batch_size", evaluated, allowed, hint=f"set it to {-(-evaluated // group) * group}")


def load_job(path: str | Path) -> Job:
    """The job in one file: YAML, or JSON if its name ends in `.json`; `-` reads standard input."""
    return parse_job(_mapping(read_text(Path(path)), str(path)), source=str(path))


def _mapping(content: str, source: str) -> Mapping[str, object]:
    data = parse_json(content, source) if source.lower().endswith(".json") else parse_yaml(content, source)
    if data is None:
        raise UsageError(f"{source}: empty: a job needs at least model, method and its lengths")
    if not isinstance(data, Mapping):
        raise UsageError(f"{source}: a job is a mapping of keys to values, not {shorten(repr(data), 60)}")
    return data


def read_jobs_jsonl(path: str | Path) -> Iterator[Job | LlamamathError]:
    """One result for each line, in order: the job, or the error of that line alone. `-` reads standard input.

    A blank line is a bad line, so that results and lines keep their numbers. Memory stays bounded: a line is at most MAX_TEXT_BYTES.
    Raises UsageError, at the first `next`, if the file itself cannot be read.
    """
    if str(path) == "-":
        yield from _read_lines(sys.stdin.buffer)
        return
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; only opening is guarded here
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{path}: cannot be read: {reason}") from error
    with file:
        yield from _read_lines(file)


def _read_lines(file: BinaryIO) -> Iterator[Job | LlamamathError]:
    line_number = 0
    while line := file.readline(MAX_TEXT_BYTES + 1):
        line_number += 1
        source = f"line {line_number}"
        complete = len(line) <= MAX_TEXT_BYTES or line.endswith(b"\n")
        while not complete:  # skip the rest of a line that is too long
            rest = file.readline(MAX_TEXT_BYTES)
            complete = not rest or rest.endswith(b"\n")
            line = b""
        try:
            result: Job | LlamamathError = _parse_line(line, source)
        except LlamamathError as error:
            result = error
        yield result


def _parse_line(line: bytes, source: str) -> Job:
    if not line:
        raise UsageError(f"{source}: longer than {MAX_TEXT_BYTES:,} bytes, so it is not a job")
    content = decode(line, source).strip()
    if not content:
        raise UsageError(f"{source}: empty: each line is one job as a JSON object")
    data = parse_json(content, source)
    if not isinstance(data, Mapping):
        raise UsageError(f"{source}: a job is a JSON object, not {shorten(repr(data), 60)}")
    return parse_job(data, source=source)
