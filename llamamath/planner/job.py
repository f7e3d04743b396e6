"""A Job: one training run, complete and concrete. The memory model reads it, the trace builds it, the trainer is configured from it.

Field names are TRL's, PEFT's and transformers' own where they mean the same thing. Parsing and validation live in `job_file.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

METHODS = ("sft", "grpo", "dpo")
QUANTIZATIONS = ("none", "int8", "nf4", "nf4-dq")
DTYPES = ("bfloat16", "float16", "float32")
ATTENTIONS = ("sdpa", "flash_attention_2", "eager")
LOSSES = ("chunked", "full", "liger")
OFFLOADS = ("checkpoints", "weights", "optimizer")
ENGINES = ("transformers", "vllm")
STACKS = ("trl-1.16", "transformers-5", "transformers-4.48", "transformers-4.45")
OPTIMIZERS = (
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw",
    "adafactor",
    "sgd",
)
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """PEFT's LoraConfig, as far as memory and training need it. `dtype` is the dtype the adapters are kept in."""

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    dtype: str = "bfloat16"
    use_dora: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How GRPO's completions are generated. `engine`: `transformers` in the training process, or `vllm`."""

    engine: str = "transformers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training run. Lengths are tokens, batches are sequences on this GPU."""

    model: str
    method: str
    stack: str = "trl-1.16"
    quantization: str = "nf4-dq"
    dtype: str = "bfloat16"
    lora: Lora | None = field(default_factory=Lora)
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    max_length: int | None = None
    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    num_generations: int | None = None
    beta: float = 0.0
    padding: bool = True
    gradient_checkpointing: bool = True
    use_reentrant: bool = False
    kbit_preparation: bool = False
    attn_implementation: str = "sdpa"
    loss: str = "chunked"
    optim: str = "adamw_torch_fused"
    offload: tuple[str, ...] = ()
    rollout: Rollout = field(default_factory=Rollout)
    # Beyond design.md's list; each has the library's default, so a job file without them means what it meant before.
    mixed_precision: bool | None = None
    """TRL's / transformers' `bf16` or `fp16` flag: autocast around the forward. None: what the stack does by default."""
    steps_per_generation: int | None = None
    """TRL's field: micro-batches rolled out by one `generate` call. None: gradient_accumulation_steps, as in TRL."""
    num_iterations: int = 1
    """TRL's field: optimisation passes over one set of completions."""
    precompute_ref_log_probs: bool = False
    """TRL's DPO field: reference log-probabilities computed before training, so no reference forward in the step."""
    per_device_eval_batch_size: int | None = None
    """Batch of evaluation during training. None: no evaluation during training."""
    num_images: int = 0
    """Images per sequence (mllama): 0 trains on text only."""
    fused_kernels: bool | None = None
    """fms-acceleration's `fast_kernels`: its LoRA, RMSNorm, rotary and cross-entropy kernels. Only to describe published runs.
    None: with `loss: liger` on transformers-4.45, where Liger's loss came only with them."""

    @property
    def sequence_length(self) -> int:
        """Tokens of one training sequence: prompt + completion."""
        if self.method == "grpo":
            return (self.max_prompt_length or 0) + (self.max_completion_length or 0)
        return self.max_length or 0

    @property
    def effective_batch_size(self) -> int:
        """Sequences per optimizer step (for DPO: pairs)."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def generation_batch_size(self) -> int:
        """Rows of one `generate` call: B * steps_per_generation, as in TRL."""
        return self.per_device_train_batch_size * (self.steps_per_generation or self.gradient_accumulation_steps)

    def changed(self, **changes: Any) -> Job:
        """A copy with the named fields replaced."""
        return replace(self, **changes)


JOB_FIELDS = tuple(f.name for f in fields(Job))
LORA_FIELDS = tuple(f.name for f in fields(Lora))
ROLLOUT_FIELDS = tuple(f.name for f in fields(Rollout))
