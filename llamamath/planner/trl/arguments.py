"""A Job as the arguments of TRL 1.16's trainers, PEFT's LoraConfig and bitsandbytes' configuration. `trl_text.py` writes them as Python.

Names are those of TRL 1.16, transformers 5.23 and PEFT 0.21; a test builds every configuration with those versions. What those libraries
cannot be told is listed in `TrlArguments.unexpressed`, never dropped silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llamamath.errors import UsageError
from llamamath.planner.architecture import Architecture
from llamamath.planner.job import Job
from llamamath.planner.memory.from_job import mixed_precision
from llamamath.planner.stack import find_stack
from llamamath.profiles.recipes import Stage

STACK = "trl-1.16"
ENVIRONMENT = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
"""Without it a growing KV cache leaves holes: a replay of 64 rows reserved 52 GiB for 2.6 GiB of cache (docs/memory-model.md)."""
_OPTIMIZERS = {"paged_adamw": "paged_adamw_32bit"}
"""transformers 5.23 has only the longer name of bitsandbytes' paged AdamW."""
_CLASSES = {"sft": "SFT", "grpo": "GRPO", "dpo": "DPO"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """A value that is written `torch.bfloat16` in Python."""

    name: str

    def __repr__(self) -> str:
        return f"torch.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrlArguments:
    """Keyword arguments, by the class that takes them. lora, quantization: None where there is none."""

    trainer: str
    config_class: str
    config: Mapping[str, object]
    model_class: str
    model_name: str
    model: Mapping[str, object]
    lora: Mapping[str, object] | None
    quantization: Mapping[str, object] | None
    kbit_preparation: Mapping[str, object] | None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))
    unexpressed: tuple[str, ...] = ()
    """What the job says and these libraries have no argument for."""


def trl_arguments(job: Job, architecture: Architecture, *, cpu: bool = False, settings: Mapping[str, object] | None = None) -> TrlArguments:
    """The arguments of a job. cpu: no GPU is to be used. settings: config arguments that are not a job's, such as learning_rate.

    Raises UsageError for a job of another stack than TRL 1.16.
    """
    if job.stack != STACK:
        raise UsageError(f"a job of stack {job.stack} has no TRL arguments", f"plan it with stack {STACK}")
    mixed = mixed_precision(job)
    config: dict[str, object] = {
        "output_dir": "runs/" + "-".join([job.method, architecture.name.rstrip("/").rpartition("/")[2]]),
        "per_device_train_batch_size": job.per_device_train_batch_size,
        "gradient_accumulation_steps": job.gradient_accumulation_steps,
        "activation_checkpointing": job.gradient_checkpointing,  # transformers 5.23: the old name still works, and warns
        "optim": _OPTIMIZERS.get(job.optim, job.optim),
        "bf16": mixed and job.dtype != "float16",
        "fp16": mixed and job.dtype == "float16",
    }
    if job.gradient_checkpointing:
        offload = {"offload": True} if "checkpoints" in job.offload else {}  # to pinned host memory; transformers 5.23
        config["activation_checkpointing_kwargs"] = {"use_reentrant": job.use_reentrant, **offload}
    if job.per_device_eval_batch_size is not None:
        config |= {"eval_strategy": "epoch", "per_device_eval_batch_size": job.per_device_eval_batch_size}
    if cpu:
        config["use_cpu"] = True
    config |= _of_method(job) | dict(settings or {})
    model: dict[str, object] = {"dtype": Torch(name=job.dtype), "attn_implementation": job.attn_implementation}
    model["device_map"] = {"": "cpu" if cpu else 0}
    name = _CLASSES[job.method]
    return TrlArguments(
        trainer=f"{name}Trainer",
        config_class=f"{name}Config",
        config=config,
        model_class="AutoModelForCausalLM" if architecture.vision is None else "AutoModelForImageTextToText",
        model_name=architecture.name,
        model=model,
        lora=_lora(job),
        quantization=_quantization(job),
        kbit_preparation={"use_gradient_checkpointing": job.gradient_checkpointing} if job.kbit_preparation else None,
        unexpressed=_unexpressed(job),
    )


def stage_settings(stage: Stage) -> dict[str, object]:
    """What a recipe's stage says beyond the job, as config arguments."""
    values: dict[str, object] = {
        "learning_rate": stage.learning_rate,
        "lr_scheduler_type": stage.lr_scheduler_type,
        "num_train_epochs": stage.num_train_epochs,
    }
    if stage.temperature is not None:
        values["temperature"] = stage.temperature
    if stage.rewards:
        values["reward_weights"] = [reward.weight for reward in stage.rewards]
    return values


def _of_method(job: Job) -> dict[str, object]:
    if job.method == "grpo":
        values: dict[str, object] = {
            "num_generations": job.num_generations,
            "max_completion_length": job.max_completion_length,
            "steps_per_generation": job.steps_per_generation or job.gradient_accumulation_steps,
            "num_iterations": job.num_iterations,
            "beta": job.beta,
        }
        if job.per_device_eval_batch_size is not None:
            values["num_generations_eval"] = job.num_generations
        return values | ({"use_vllm": True, "vllm_mode": "colocate"} if job.rollout.engine == "vllm" else {})
    values = {"max_length": job.max_length}
    if job.method == "dpo":
        values |= {"beta": job.beta, "precompute_ref_log_probs": job.precompute_ref_log_probs}
        return values | ({"padding_free": True} if _padding_free(job) else {})
    if not job.padding:
        # `bfd` needs FlashAttention to keep examples apart; `wrapped` fills every row to max_length, so no kernel sees a mask.
        values |= {"packing": True, "packing_strategy": "bfd" if job.attn_implementation == "flash_attention_2" else "wrapped"}
    return values


def _padding_free(job: Job) -> bool:
    return not job.padding and job.attn_implementation == "flash_attention_2"


def _lora(job: Job) -> dict[str, object] | None:
    if job.lora is None:
        return None
    targets = job.lora.target_modules
    values: dict[str, object] = {
        "r": job.lora.r,
        "lora_alpha": job.lora.lora_alpha,
        "lora_dropout": job.lora.lora_dropout,
        "target_modules": list(targets) if isinstance(targets, tuple) else targets,
        "task_type": "CAUSAL_LM",
    }
    return values | ({"use_dora": True} if job.lora.use_dora else {})


def _quantization(job: Job) -> dict[str, object] | None:
    if job.quantization == "none":
        return None
    if job.quantization == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": job.quantization == "nf4-dq",
        "bnb_4bit_compute_dtype": Torch(name=job.dtype),
    }


def _unexpressed(job: Job) -> tuple[str, ...]:
    found = [f"offload: {kind} has no argument" for kind in job.offload if kind != "checkpoints"]
    if "checkpoints" in job.offload and not job.gradient_checkpointing:
        found.append("offload: checkpoints means nothing without gradient checkpointing")
    if job.method == "grpo":
        found.append(f"max_prompt_length is no argument: keep only prompts of at most {job.max_prompt_length:,} tokens")
    if not job.padding and (job.method == "grpo" or (job.method == "dpo" and not _padding_free(job))):
        found.append("padding: false holds only if all sequences of a batch are equally long")
    if job.loss != "chunked":
        found.append(f"loss: {job.loss} has no argument; TRL 1.16 computes it in chunks")
    if job.lora is not None and job.lora.dtype != find_stack(job.stack).adapter_dtype(job.quantization):
        found.append(f"lora.dtype: {job.lora.dtype} has no argument; cast the adapter before training")
    if job.fused_kernels:
        found.append("fused_kernels: true has no argument")
    return tuple(found)
