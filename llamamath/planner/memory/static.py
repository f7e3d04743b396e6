"""Memory that is there for the whole run: weights as they are stored, adapters, optimizer state; and the trainable tensors.

Every tensor is rounded up to 512 bytes, the caching allocator's unit. Sources: bitsandbytes 0.50.2 `functional.py` (quantize_4bit,
QuantState) and `optim/optimizer.py`; torch 2.13 `optim/adamw.py`, `optim/_multi_tensor`; peft 0.21.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from llamamath.planner.architecture import Architecture
from llamamath.planner.job import Lora
from llamamath.planner.memory.settings import Settings
from llamamath.planner.parameters import Weight, adapted_weights, weights

ALIGNMENT = 512
NF4_BLOCK = 64
STATISTICS_BLOCK = 256
"""Absmax values that share one second-level scale under double quantization."""
OPTIMIZER_BLOCK = 256
"""Elements that share one fp32 absmax in bitsandbytes' 8-bit optimizers."""
MINIMUM_8BIT = 4096
"""Below this many elements bitsandbytes keeps fp32 state (`min_8bit_size`)."""
MINIMUM_PAGED = 100_000
"""Below this many elements a paged optimizer's state is ordinary device memory (`optim/optimizer.py`, get_state_buffer)."""


@dataclass(frozen=True, slots=True)
class Trainable:
    """`copies` trainable tensors of `numel` elements, `width` bytes each."""

    numel: int
    width: int
    copies: int
    embedding: bool = False
    reached: bool = True
    """False for adapters of an image tower or cross-attention layer in a run without images: no gradient, so no state."""


@dataclass(frozen=True, slots=True)
class Static:
    """Bytes that do not depend on batch or length."""

    base_bytes: int
    lora_bytes: int
    trainable: tuple[Trainable, ...]
    gradient_bytes: int
    """All gradients, in their parameters' dtypes."""
    layer_bytes: int
    """Of the base, what lies in the layers of the decoder (and so could be streamed)."""
    largest_weight_bytes: int
    """The largest quantised weight in its load dtype: what passes through the GPU while the model loads (0 for a plain model)."""
    largest_read_bytes: int
    """The largest weight of all in its load dtype: what passes through RAM while the model loads."""

    @property
    def trainable_numel(self) -> int:
        """Trainable parameters."""
        return sum(tensor.numel * tensor.copies for tensor in self.trainable)


def aligned(size: int) -> int:
    """`size` rounded up to the allocator's 512 bytes."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def quantized_bytes(numel: int, out_features: int, quantization: str) -> int:
    """One quantised weight with its scale blocks.

    nf4: ceil(numel/2) packed + fp32 absmax per 64 + the 16-entry code. nf4-dq: uint8 absmax per 64, one fp32 per 256 of those, their
    256-entry code, an offset. int8: one byte each + one fp32 scale per row.
    """
    if quantization == "int8":
        return aligned(numel) + aligned(4 * out_features)
    blocks = -(-numel // NF4_BLOCK)
    packed = aligned(-(-numel // 2)) + aligned(16 * 4)
    if quantization == "nf4":
        return packed + aligned(4 * blocks)
    return packed + aligned(blocks) + aligned(4 * -(-blocks // STATISTICS_BLOCK)) + aligned(256 * 4) + aligned(4)


def _is_for_text(weight: Weight) -> bool:
    return weight.tower == "text" and ".cross_attn." not in weight.name


def weight_bytes(weight: Weight, settings: Settings) -> int:
    """One base weight as it lies on the device."""
    if settings.quantized and weight.role == "linear":
        return quantized_bytes(weight.numel, weight.shape[0], settings.quantization)
    width = settings.load_width
    if settings.kbit_preparation:
        width = settings.embedding_width if weight.role in ("embedding", "lm_head") else 4
    return aligned(weight.numel * width)


@lru_cache(maxsize=512)
def static_memory(architecture: Architecture, settings: Settings, lora: Lora | None) -> Static:
    """Weights, adapters and trainable tensors of a model under `settings`."""
    base = sum(weight_bytes(weight, settings) * weight.copies for weight in weights(architecture))
    if settings.reference_model:
        base *= 2
    trainable: list[Trainable] = []
    adapters = 0
    if lora is None:
        trainable = [
            Trainable(
                weight.numel,
                settings.load_width,
                weight.copies,
                embedding=weight.role == "embedding",
                reached=settings.images or _is_for_text(weight),
            )
            for weight in weights(architecture)
        ]
    else:
        for weight in adapted_weights(architecture, lora):
            out_features, in_size = weight.shape[0], weight.numel // weight.shape[0]
            sizes = [(lora.r * in_size, settings.adapter_width), (lora.r * out_features, settings.adapter_width)]
            if lora.use_dora:
                sizes.append((out_features, 4))  # the magnitude stays fp32
            for numel, width in sizes:
                trainable.append(Trainable(numel, width, weight.copies, reached=settings.images or _is_for_text(weight)))
                adapters += aligned(numel * width) * weight.copies
    layers = sum(
        weight_bytes(weight, settings) * weight.copies for weight in weights(architecture) if weight.layers and weight.tower == "text"
    )
    quantized = [weight.numel for weight in weights(architecture) if settings.quantized and weight.role == "linear"]
    largest = max(quantized, default=0) * settings.load_width
    largest_read = max(weight.numel for weight in weights(architecture)) * settings.load_width
    gradients = sum(aligned(tensor.numel * tensor.width) * tensor.copies for tensor in trainable if tensor.reached)
    return Static(base, adapters, tuple(trainable), gradients, layers, largest, largest_read)


@dataclass(frozen=True, slots=True)
class OptimizerMemory:
    """State on the device, what `step` adds for a moment, and managed memory that may be paged to the host."""

    state_bytes: int
    step_bytes: int
    paged_bytes: int = 0


@lru_cache(maxsize=512)
def optimizer_memory(optim: str, static: Static) -> OptimizerMemory:
    """State and step temporaries of one optimizer over the trainable tensors.

    adamw_torch (foreach): two states in the parameters' dtype, and `_foreach_sqrt` of the second: one more copy of everything at once.
    adamw_torch_fused: two states, no temporaries. 8-bit: two uint8 states + fp32 absmax per 256 (fp32 states below 4,096 elements,
    and for embeddings, as transformers' Trainer asks). Paged: moments of at least 100,000 elements live in managed memory, outside the
    caching allocator. adafactor: one fp32 row and one column vector per matrix, and four fp32 copies of a parameter while it is updated
    (its gradient, itself, the squared gradient, the update). sgd: nothing.
    """
    state = step = paged = 0
    for tensor in static.trainable:
        if not tensor.reached:
            continue
        full = aligned(tensor.numel * tensor.width)
        if optim in ("adamw_torch", "adamw_torch_fused"):
            state += (2 * full + ALIGNMENT) * tensor.copies  # and one step counter
            if optim == "adamw_torch":
                step += full * tensor.copies
            continue
        moments, scales = _bitsandbytes_state(optim, tensor)
        if optim == "adafactor":
            state += 2 * aligned(4 * int(tensor.numel**0.5)) * tensor.copies
            step = max(step, 4 * 4 * tensor.numel)
        elif optim.startswith("paged") and tensor.numel >= MINIMUM_PAGED:
            paged += moments * tensor.copies
            state += scales * tensor.copies
        else:
            state += (moments + scales) * tensor.copies
    return OptimizerMemory(state, step, paged)


def _bitsandbytes_state(optim: str, tensor: Trainable) -> tuple[int, int]:
    """Bytes of the two moments of one tensor, and of the 8-bit moments' fp32 scales (which are never paged)."""
    if optim in ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit") and tensor.numel >= MINIMUM_8BIT and not tensor.embedding:
        return 2 * aligned(tensor.numel), 2 * aligned(4 * -(-tensor.numel // OPTIMIZER_BLOCK))
    if "8bit" in optim or optim.startswith("paged"):
        return 2 * aligned(4 * tensor.numel), 0
    return 0, 0
