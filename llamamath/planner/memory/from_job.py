"""A Job's structural settings and the values of its monomials."""

from __future__ import annotations

from functools import lru_cache

from llamamath.planner.architecture import Architecture
from llamamath.planner.job import Job, Lora
from llamamath.planner.memory.settings import WIDTHS, Settings
from llamamath.planner.parameters import adapted_weights
from llamamath.planner.stack import LogitsPath, find_stack

SMALL_BATCH_ROWS = 4
"""bitsandbytes 0.50.2 `_GEMM_4BIT_CUSTOM_FLOOR_M`: up to it a 4-bit product never dequantises its weight. Above 1,536 rows it always
does; between, the card and the shape decide, and it is taken to."""
REPEATING_FAMILIES = ("mistral", "qwen2", "phi3")
"""transformers 4.45 `modeling_<family>.py`, FlashAttention2.forward: `repeat_kv` of keys and values; Llama's does not."""
TILE_TOKENS = 4096
TILE_WORDS = 32768
LITGPT_CHUNK_TOKENS = 128
TORCHTUNE_CHUNKS = 8


@lru_cache(maxsize=1024)
def _targets(architecture: Architecture, lora: Lora) -> tuple[frozenset[str], frozenset[str]]:
    adapted = adapted_weights(architecture, lora)
    text = frozenset(weight.module for weight in adapted if weight.tower == "text")
    return text, frozenset(weight.module for weight in adapted if weight.tower != "text")


def mixed_precision(job: Job) -> bool:
    """Whether autocast surrounds the forward: as the job says, else as its stack does by default.

    The two old stacks are those of fms-acceleration's published runs: 4.48 with autocast for quantised models only, 4.45 always.
    """
    if job.mixed_precision is not None:
        return job.mixed_precision
    if job.stack == "transformers-4.48":
        return job.quantization != "none"
    return job.stack == "transformers-4.45" or find_stack(job.stack).mixed_precision_default


def fused_kernels(job: Job) -> bool:
    """Whether fms-acceleration's kernels run: as the job says, else where its Liger loss was published (transformers 4.45)."""
    if job.fused_kernels is not None:
        return job.fused_kernels
    return job.stack == "transformers-4.45" and job.loss == "liger"


def attention_kernel(job: Job, architecture: Architecture, masked: bool) -> str:
    """Which kernel runs: sdpa takes flash attention without a mask and the memory-efficient kernel with one.

    transformers refuses sdpa for logit soft-capping (estimated as eager) and flash_attention_2 for mllama (estimated as sdpa).
    """
    if job.attn_implementation == "eager":
        return "eager"
    if job.attn_implementation == "flash_attention_2" and architecture.family != "mllama":
        return "flash_varlen" if job.padding else "flash"
    if architecture.attn_logit_softcapping is not None:
        return "eager"
    if job.dtype == "float32" and not mixed_precision(job):
        return "efficient"
    return "efficient" if masked or architecture.head_dim > 256 else "flash"


def is_masked(job: Job, architecture: Architecture) -> bool:
    """Whether an explicit mask exists: a ragged batch, or a sliding window no longer than the sequence."""
    window = architecture.sliding_window
    return job.padding or (window is not None and bool(architecture.sliding_layers) and job.sequence_length >= window)


def settings_of(job: Job, architecture: Architecture) -> Settings:
    """The structural settings of `job`: equal for jobs that differ only in batch and lengths."""
    lora = job.lora
    masked = is_masked(job, architecture)
    text, vision = _targets(architecture, lora) if lora else (frozenset[str](), frozenset[str]())
    rows = job.per_device_train_batch_size * job.sequence_length * (2 if job.method == "dpo" else 1)
    stack = find_stack(job.stack)
    four_bit = job.quantization in ("nf4", "nf4-dq")
    return Settings(
        method=job.method,
        loss=stack.logits_path(job.loss).value,
        layers=stack.layers,
        quantization=job.quantization,
        load_width=WIDTHS[job.dtype],
        autocast=mixed_precision(job),
        train_base=lora is None,
        rank=lora.r if lora else 0,
        adapter_width=WIDTHS[lora.dtype] if lora else 2,
        targets=text,
        vision_targets=vision,
        dropout=bool(lora and lora.lora_dropout > 0 and job.method != "dpo"),  # DPOConfig.disable_dropout is on by default
        dora=bool(lora and lora.use_dora),
        checkpointing=job.gradient_checkpointing,
        reentrant=job.gradient_checkpointing and job.use_reentrant,
        kbit_preparation=job.kbit_preparation and job.quantization != "none",
        embeddings_stay_wide=stack.kbit_preparation_keeps_embeddings_float32,
        masked=masked,
        attention=attention_kernel(job, architecture, masked),
        in_place_adapters=stack.adds_adapter_in_place,
        keeps_inputs=job.quantization == "int8" or (four_bit and stack.quantized_linear_keeps_input),
        keeps_last_graph=four_bit and stack.keeps_last_graph,
        through_float16=four_bit and stack.dequantizes_through_float16,
        quantized_head=four_bit and stack.quantizes_lm_head,
        accumulating=job.gradient_accumulation_steps > 1,
        small_batch=rows <= SMALL_BATCH_ROWS and stack.small_batch_4bit_kernel,
        single_row=job.per_device_train_batch_size == 1 and job.method != "dpo",
        reference=_has_reference(job),
        reference_model=lora is None and _has_reference(job),
        old_log_probs=job.method == "grpo" and _needs_old_log_probs(job),
        images=job.num_images > 0 and architecture.vision is not None,
        fused=fused_kernels(job),
        repeats_key_values=job.stack == "transformers-4.45" and architecture.family in REPEATING_FAMILIES,
        evaluating=job.per_device_eval_batch_size is not None,
        offload_checkpoints="checkpoints" in job.offload and job.gradient_checkpointing,
    )


def _has_reference(job: Job) -> bool:
    return (job.method == "grpo" and job.beta != 0) or (job.method == "dpo" and not job.precompute_ref_log_probs)


def _needs_old_log_probs(job: Job) -> bool:
    """trl 1.16 `_generate_and_score_completions`: scored again when updates and rollouts do not line up, or vLLM sampled them."""
    steps = job.steps_per_generation or job.gradient_accumulation_steps
    return job.gradient_accumulation_steps % (steps * job.num_iterations) != 0 or job.rollout.engine == "vllm"


Values = tuple[int, ...]


def training_values(job: Job, architecture: Architecture) -> Values:
    """The monomials of one training micro-batch. DPO's micro-batch holds a chosen and a rejected sequence per pair."""
    rows = job.per_device_train_batch_size * (2 if job.method == "dpo" else 1)
    length = job.sequence_length
    if job.method == "grpo":
        scored = rows * (job.max_completion_length or 0)
    elif job.method == "dpo" and job.max_prompt_length:
        scored = rows * max(0, length - job.max_prompt_length)
    else:
        scored = rows * (length - 1)
    return _values(rows, length, scored, length, job, architecture)


def evaluation_values(job: Job, architecture: Architecture) -> Values:
    """The monomials of one evaluation batch."""
    evaluated = job.changed(per_device_train_batch_size=job.per_device_eval_batch_size or 1)
    return training_values(evaluated, architecture)


def prefill_values(job: Job, architecture: Architecture) -> Values:
    """The monomials of `generate`'s first forward: all rows of the generation batch, prompt length."""
    return _values(job.generation_batch_size, job.max_prompt_length or 0, 0, job.max_prompt_length or 0, job, architecture)


def decode_values(job: Job, architecture: Architecture) -> Values:
    """The monomials of the last decode step: one token per row, the cache at its longest."""
    return _values(job.generation_batch_size, 1, 0, job.sequence_length, job, architecture)


def _values(rows: int, length: int, scored: int, cached: int, job: Job, architecture: Architecture) -> Values:
    vision_row = vision_square = 0
    if job.num_images and architecture.vision is not None:
        padded = -(-architecture.vision.patches_per_tile // 8) * 8
        per_image = architecture.vision.max_num_tiles * padded
        vision_row = job.num_images * per_image
        vision_square = rows * job.num_images * per_image * per_image
    return (
        1,
        rows * length,
        rows,
        length,
        rows * (-(-length // 128) * 128),
        rows * length * length,
        rows * length * (-(-length // 16) * 16),
        length * length,
        scored,
        _tile(job, architecture, rows, length, scored),
        rows * cached,
        rows * vision_row,
        rows * length * vision_row,
        rows * length * (-(-vision_row // 16) * 16),
        vision_square,
    )


def _tile(job: Job, architecture: Architecture, rows: int, length: int, scored: int) -> int:
    """Elements of the largest piece of logits that a loss makes at once.

    TRL: min(N, 4096) x 32,768. Liger: next_power_of_2(N / ceil(V / H)) rows of the vocabulary. LitGPT: 128 positions of every row.
    torchtune: an eighth of the positions.
    """
    if not scored:
        return 0
    path = find_stack(job.stack).logits_path(job.loss)
    vocabulary = architecture.vocab_size
    if path is LogitsPath.LIGER:
        parts = -(-vocabulary // architecture.hidden_size)
        return min(scored, 1 << (-(-scored // parts) - 1).bit_length()) * vocabulary
    if path in (LogitsPath.LITGPT_CHUNKED, LogitsPath.LITGPT_FULL):
        return rows * min(length, LITGPT_CHUNK_TOKENS) * vocabulary
    if path in (LogitsPath.TORCHTUNE_CHUNKED, LogitsPath.TORCHTUNE_COMPILED):
        return rows * -(-length // TORCHTUNE_CHUNKS) * vocabulary
    return min(scored, TILE_TOKENS) * TILE_WORDS
