"""What somebody asks the search for, and how the parts that they left open are filled in before anything is searched.

Defaults, where neither the user nor the data says anything:

* effective batch: 16 sequences (sft) or pairs (dpo); grpo 64 completions in groups of 8, so 8 prompts a step
* max_length 1024 (sft, dpo); 512 prompt + 1024 completion tokens (grpo); never beyond the model's max_position_embeddings
* LoRA rank 16, alpha twice the rank, no dropout, on every linear
* float16 where the card's compute capability is below 8.0 (no bfloat16), with float32 adapters: a gradient scaler cannot unscale float16
  gradients; else bfloat16
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import gcd

from llamamath.errors import FieldError, UsageError, closest_names
from llamamath.planner.architecture import Architecture
from llamamath.planner.device import Device
from llamamath.planner.fit.fitting import NOT_YET_RUNNABLE
from llamamath.planner.job import METHODS, Job
from llamamath.planner.job_files.job_file import parse_job
from llamamath.planner.stack import find_stack
from llamamath.planner.throughput.token_lengths import TokenLengths
from llamamath.profiles.recipes import Stage

OBJECTIVES = ("throughput", "context", "model", "cost")
EFFECTIVE_BATCH = {"sft": 16, "dpo": 16, "grpo": 64}
GROUP = 8
RANK = 16
MAX_LENGTH, MAX_PROMPT_LENGTH, MAX_COMPLETION_LENGTH = 1024, 512, 1024
DATA_PERCENTILE = 99
"""Share of the examples that the chosen length leaves uncut."""
RECIPE_IDENTITY = (
    "method",
    "stack",
    "quantization",
    "lora",
    "max_length",
    "max_prompt_length",
    "max_completion_length",
    "num_generations",
    "beta",
    "num_images",
    "num_iterations",
    "padding",
    "rollout",
    "precompute_ref_log_probs",
)
"""Job keys that make a recipe the experiment it is; the others only decide how it is computed, so the search may choose them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to plan. `fixed`: job-file keys (`lora.r` for nested ones) that must not be changed; `sources`: where each came from.

    model: None lets the search choose. effective_batch_size: sequences, pairs or completions per optimizer step, kept exactly.
    attentions: kernels that are installed, the preferred first. num_samples: examples, for grpo prompts.
    """

    model: str | None = None
    method: str = "grpo"
    fixed: Mapping[str, object] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    effective_batch_size: int | None = None
    num_samples: int | None = None
    num_train_epochs: float = 1.0
    token_lengths: TokenLengths | None = None
    objective: str = "throughput"
    attentions: tuple[str, ...] = ("sdpa",)

    def __post_init__(self) -> None:
        for name, value, known in (("objective", self.objective, OBJECTIVES), ("method", self.method, METHODS)):
            if value not in known:
                raise FieldError(name, value, ", ".join(known), closest_names(value, known))
        if self.num_samples is not None and self.num_samples < 1:
            raise FieldError("num_samples", self.num_samples, "a whole number above 0")
        if not 0 < self.num_train_epochs <= 1000:
            raise FieldError("num_train_epochs", self.num_train_epochs, "a number above 0 and at most 1,000")
        if self.effective_batch_size is not None and not 1 <= self.effective_batch_size <= 65_536:
            raise FieldError("effective_batch_size", self.effective_batch_size, "a whole number from 1 to 65,536")


def request_of_stage(stage: Stage, *, recipe: str, changed: Mapping[str, object] | None = None, objective: str = "throughput") -> Request:
    """A recipe's stage as a Request: its experiment (RECIPE_IDENTITY) and effective batch kept, the rest free. `changed` are flags."""
    flags = dict(flattened(changed or {}))
    fixed: dict[str, object] = {key: value for key, value in flattened(stage.job).items() if key.partition(".")[0] in RECIPE_IDENTITY}
    if "lora" in flags:
        fixed = {key: value for key, value in fixed.items() if not key.startswith("lora.")}
    adapter = fixed.pop("lora.dtype", None)  # follows from the quantisation and the card, unless a flag says so
    if adapter == "float32":
        fixed["lora.dtype"] = adapter
    sources = dict.fromkeys(fixed, f"recipe {recipe}") | dict.fromkeys(flags, "flag")
    fixed |= flags
    job = parse_job(stage.job, source=f"recipe {recipe}")
    keeps = not {"per_device_train_batch_size", "gradient_accumulation_steps", "num_generations"} & set(flags)
    return Request(
        model=str(fixed.pop("model", job.model)),
        method=str(fixed.pop("method", job.method)),
        fixed=fixed,
        sources=sources,
        effective_batch_size=job.effective_batch_size if keeps else None,
        num_samples=stage.num_samples,
        num_train_epochs=stage.num_train_epochs,
        objective=objective,
    )


def flattened(values: Mapping[str, object]) -> dict[str, object]:
    """`{"lora": {"r": 8}}` -> `{"lora.r": 8}`; other values as they are."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if key in ("lora", "rollout") and isinstance(value, Mapping):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return flat


def _nested(flat: Mapping[str, object]) -> dict[str, object]:
    nested: dict[str, object] = {}
    for key, value in flat.items():
        section, dot, name = key.partition(".")
        if not dot:
            nested[key] = value
            continue
        inner = nested.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{section} is {inner}, so {key} has nothing to set", "leave one of the two out")
        inner[name] = value
    return nested


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A request made concrete: a valid job with every default in it, and what of it may be changed.

    free: names of fields (`lora.r` for nested ones) that nobody fixed. job: micro-batch 1 where that is free.
    """

    job: Job
    free: frozenset[str]
    effective_batch_size: int
    notes: tuple[str, ...] = ()

    def is_free(self, *names: str) -> bool:
        """True when none of the fields was fixed."""
        return self.free.issuperset(names)


def start(request: Request, architecture: Architecture, device: Device) -> Start:
    """The request with every open field at its default. Raises FieldError naming what contradicts what."""
    fixed = flattened(request.fixed)
    lengths, notes = _lengths(request, fixed, architecture)
    effective = _effective_batch(request, fixed)
    values: dict[str, object] = {"dtype": "bfloat16" if device.supports_bf16 else "float16", **lengths, **fixed}
    values |= {"model": request.model or architecture.name, "method": request.method}
    if "attn_implementation" not in fixed:
        values["attn_implementation"] = attentions(request, architecture, device)[0]
    if fixed.get("lora", ...) is None:
        values.setdefault("quantization", "none")
    if request.method == "grpo":
        values.setdefault("num_generations", _group(effective))
    batch, steps = _batch(fixed, effective, values.get("num_generations"))
    values = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps} | values
    job = parse_job(_nested(values), source="plan")
    free = frozenset(name for name in (*values, *_SEARCHED) if name not in fixed)
    if job.lora is not None:
        job = with_rank(job, RANK if "lora.r" in free else job.lora.r, free)
        job = with_quantization(job, job.quantization, free, device)
    _check_device(job, device)
    return Start(job=job, free=free, effective_batch_size=effective, notes=notes)


_SEARCHED = (
    *("quantization", "gradient_checkpointing", "offload", "optim", "attn_implementation", "steps_per_generation"),
    *("lora.r", "lora.lora_alpha", "lora.dtype"),
)


def attentions(request: Request, architecture: Architecture, device: Device) -> tuple[str, ...]:
    """The kernels worth trying: what transformers accepts for this model and this card runs. Soft-capped logits need eager."""
    capped = architecture.attn_logit_softcapping is not None
    old = device.kind == "cpu" or (device.compute_capability is not None and device.compute_capability < (8, 0))
    unusable = {"sdpa"} if capped else set()
    if old or architecture.family == "mllama":
        unusable.add("flash_attention_2")
    usable = tuple(name for name in request.attentions if name not in unusable)
    return usable or ("eager",)


def with_quantization(job: Job, quantization: str, free: frozenset[str], device: Device) -> Job:
    """`job` on another base; the adapters follow in the dtype that the stack gives them, float32 where the card has no bfloat16."""
    lora = job.lora
    if lora is not None and "lora.dtype" in free:
        dtype = "float32" if job.dtype == "float16" and not device.supports_bf16 else find_stack(job.stack).adapter_dtype(quantization)
        lora = replace(lora, dtype=dtype)
    return job.changed(quantization=quantization, lora=lora)


def with_rank(job: Job, rank: int, free: frozenset[str]) -> Job:
    """`job` with another rank; alpha stays twice the rank unless it was fixed."""
    lora = job.lora
    if lora is None:
        return job
    return job.changed(lora=replace(lora, r=rank, lora_alpha=2 * rank if "lora.lora_alpha" in free else lora.lora_alpha))


def _lengths(request: Request, fixed: Mapping[str, object], architecture: Architecture) -> tuple[dict[str, object], tuple[str, ...]]:
    """Lengths that nobody fixed: what holds DATA_PERCENTILE of the data, else the defaults; within what the model's positions allow."""
    most = architecture.max_position_embeddings
    wanted = None if request.token_lengths is None else request.token_lengths.holding(DATA_PERCENTILE)
    notes = []
    if request.method != "grpo":
        length = min(wanted or MAX_LENGTH, most)
        given = fixed.get("max_length", length)
        if isinstance(given, int) and given > most:
            notes.append(f"max_length {given:,} is beyond the model's max_position_embeddings, {most:,}")
        return {"max_length": length}, tuple(notes)
    completion = fixed.get("max_completion_length")
    room = max(1, most - completion) if isinstance(completion, int) else max(1, most // 2)
    prompt = fixed.get("max_prompt_length", min(wanted or MAX_PROMPT_LENGTH, room))
    if isinstance(prompt, int):
        completion = fixed.get("max_completion_length", max(1, min(MAX_COMPLETION_LENGTH, most - prompt)))
        if isinstance(completion, int) and prompt + completion > most:
            notes.append(f"prompt + completion, {prompt + completion:,}, is beyond the model's max_position_embeddings, {most:,}")
    return {"max_prompt_length": prompt, "max_completion_length": completion}, tuple(notes)


def _whole(fixed: Mapping[str, object], key: str) -> int | None:
    value = fixed.get(key)
    return value if isinstance(value, int) and value > 0 else None


def _effective_batch(request: Request, fixed: Mapping[str, object]) -> int:
    """As asked; else the product of a fixed batch and accumulation; else the default, as near as whole micro-batches and groups allow."""
    batch, steps = _whole(fixed, "per_device_train_batch_size"), _whole(fixed, "gradient_accumulation_steps")
    group = _whole(fixed, "num_generations") if request.method == "grpo" else None
    asked = request.effective_batch_size
    if batch and steps:
        if asked not in (None, batch * steps):
            allowed = f"per_device_train_batch_size x gradient_accumulation_steps = {batch * steps}, both of which are fixed"
            raise FieldError("effective_batch_size", asked, allowed)
        return batch * steps
    if asked is None:
        unit = 1
        for part in (batch, steps, group):
            if part:
                unit = unit * part // gcd(unit, part)
        return unit * max(1, round(EFFECTIVE_BATCH[request.method] / unit))
    for name, part in (("per_device_train_batch_size", batch), ("gradient_accumulation_steps", steps), ("num_generations", group)):
        if part and asked % part:
            raise FieldError(name, part, f"a divisor of the effective batch, {asked}")
    return asked


def _group(effective: int) -> int:
    """The default group size, or the largest below it that divides the effective batch."""
    for group in range(min(GROUP, effective), 1, -1):
        if effective % group == 0:
            return group
    raise FieldError("effective_batch_size", effective, "a number of completions that groups of 2 to 8 divide, with method grpo")


def _batch(fixed: Mapping[str, object], effective: int, group: object) -> tuple[int, int]:
    """Micro-batch and accumulation: the fixed ones, else the smallest micro-batch whose rollout of fixed steps holds whole groups."""
    batch, steps = _whole(fixed, "per_device_train_batch_size"), _whole(fixed, "gradient_accumulation_steps")
    if batch:
        return batch, steps or effective // batch
    if steps:
        return effective // steps, steps
    rolled = _whole(fixed, "steps_per_generation")
    if rolled and isinstance(group, int) and group > 0:
        for size in range(1, effective + 1):
            if effective % size == 0 and size * rolled % group == 0:
                return size, effective // size
    return 1, effective


def _check_device(job: Job, device: Device) -> None:
    """What was fixed and this device cannot do, or training cannot do yet."""
    old = device.compute_capability is not None and device.compute_capability < (8, 0)
    if old and job.dtype == "bfloat16":
        capability = ".".join(map(str, device.compute_capability or ()))
        raise FieldError(
            "dtype", job.dtype, f"float16 or float32 on {device.name}: its compute capability is {capability}, bfloat16 needs 8.0"
        )
    if job.attn_implementation == "flash_attention_2" and (old or device.kind == "cpu"):
        raise FieldError("attn_implementation", job.attn_implementation, f"sdpa or eager on {device.name}")
    waiting = [value for value in job.offload if value in NOT_YET_RUNNABLE]
    if waiting:
        raise FieldError(
            "offload", list(job.offload), "[checkpoints] or []: training cannot run the others yet", hint="`fit` shows their memory"
        )
    if "checkpoints" in job.offload and device.kind == "cpu":
        raise FieldError("offload", list(job.offload), f"[] on {device.name}, whose memory is RAM already")
