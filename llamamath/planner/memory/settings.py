"""What of a job decides which tensors exist: the key under which a symbolic walk is cached.

Batch sizes and lengths are not here (they are monomials), so all jobs that differ only in them share one walk.
"""

from __future__ import annotations

from dataclasses import dataclass

WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Structural choices. Widths are bytes per element."""

    method: str
    loss: str
    """A LogitsPath value: which tensors as large as the logits the loss keeps."""
    layers: str
    """Whose modelling code: `transformers`, `litgpt` or `torchtune`."""
    quantization: str
    load_width: int
    autocast: bool
    """Mixed precision around the forward: linears and matmuls run in 2-byte types whatever comes in."""
    train_base: bool
    rank: int
    adapter_width: int
    targets: frozenset[str]
    """Names of the adapted linears of the decoder."""
    vision_targets: frozenset[str]
    """Names of the adapted linears of the image tower and projector."""
    dropout: bool
    dora: bool
    checkpointing: bool
    reentrant: bool
    kbit_preparation: bool
    embeddings_stay_wide: bool
    """After `prepare_model_for_kbit_training` the embedding and lm_head stay fp32 (old trainers cast them back)."""
    masked: bool
    """An explicit attention mask exists (ragged batch, or a sliding window shorter than the sequence)."""
    attention: str
    """Kernel: `flash`, `flash_varlen`, `efficient` or `eager`."""
    in_place_adapters: bool
    """The adapter's output is added into the base layer's."""
    keeps_inputs: bool
    """Quantised layers keep their input outside autograd's saved tensors: bitsandbytes' int8, and its 4-bit before 0.43."""
    keeps_last_graph: bool
    """What quantised layers keep of the micro-batch before stays until this one's loss exists."""
    through_float16: bool
    """4-bit weights are dequantised to float16 first."""
    quantized_head: bool
    """lm_head is a 4-bit layer."""
    accumulating: bool
    """Gradients of earlier micro-batches are alive during forward and backward."""
    small_batch: bool
    """So few rows reach each 4-bit linear that bitsandbytes uses its fused kernel, which dequantises nothing."""
    single_row: bool
    """One sequence per micro-batch: slicing one position off it leaves it contiguous, so the shifted logits are no copy."""
    reference: bool
    """GRPO with beta != 0, or DPO without precomputed reference log-probabilities."""
    old_log_probs: bool
    images: bool
    fused: bool
    """fms-acceleration's kernels: RMSNorm, rotary and cross entropy; on a quantised model also its LoRA functions for q, k, v and o."""
    repeats_key_values: bool
    """Keys and values are repeated to all query heads before flash attention (some families of transformers 4.45)."""
    evaluating: bool
    """Evaluation during training."""
    offload_checkpoints: bool
    reference_model: bool = False
    """A second, frozen copy of the model exists (beta != 0 without LoRA)."""

    @property
    def quantized(self) -> bool:
        """True when bitsandbytes replaces the linears."""
        return self.quantization != "none"

    @property
    def compute_width(self) -> int:
        """Bytes per element in which 4-bit and 8-bit linears compute."""
        return 2

    @property
    def embedding_width(self) -> int:
        """Bytes per element of the embedding and lm_head."""
        return 4 if self.kbit_preparation and self.embeddings_stay_wide else self.load_width

    @property
    def residual_width(self) -> int:
        """Bytes per element of keys, values and hidden states while generating."""
        return 4 if self.kbit_preparation else self.load_width

    def adapts(self, module: str, tower: str = "text") -> bool:
        """Whether LoRA adapts the linear of that name in that tower (`text` or `vision`)."""
        return self.rank > 0 and module in (self.targets if tower == "text" else self.vision_targets)
