"""What a model is made of: the numbers the memory model needs, read from a transformers `config.json`.

The dataclasses here are the vocabulary; `config_file.py` reads them from a configuration and `parameters.py` lists every
weight tensor they imply.
"""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3", "granite", "mllama")
"""transformers' `model_type` of every family whose layer the memory model describes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionArchitecture:
    """The image tower of Mllama. Counts and widths are transformers' `MllamaVisionConfig` fields."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_global_layers: int
    attention_heads: int
    image_size: int
    patch_size: int
    num_channels: int
    max_num_tiles: int
    max_aspect_ratio_id: int
    intermediate_layers_indices: tuple[int, ...]

    @property
    def patches_per_tile(self) -> int:
        """Vision tokens of one tile: the patches and one class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def output_dim(self) -> int:
        """Width handed to the projector: the last hidden state beside the kept intermediate ones."""
        return self.hidden_size * (1 + len(self.intermediate_layers_indices))


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One decoder (with an optional image tower). Field names are transformers' configuration names."""

    family: str
    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    attention_bias: bool = False
    """q, k and v projections carry a bias (qwen2 always; llama and granite by configuration)."""
    attention_output_bias: bool = False
    """o_proj carries a bias (llama and granite with `attention_bias`; never qwen2)."""
    mlp_bias: bool = False
    query_key_norm: bool = False
    """RMSNorm on each head of q and k (qwen3)."""
    fused_projections: bool = False
    """One `qkv_proj` and one `gate_up_proj` (phi3)."""
    post_norms: bool = False
    """Norms after attention and after the MLP as well as before (gemma2)."""
    partial_rotary_factor: float = 1.0
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    scaled_embeddings: bool = False
    """The embedding output is multiplied by a constant (gemma2, granite)."""
    scaled_residual: bool = False
    """Each branch is multiplied by a constant before the residual sum (granite)."""
    logits_scaling: float | None = None
    """Logits are divided by this (granite)."""
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    """Indices of the layers whose attention, and so whose KV cache, stops at `sliding_window`."""
    cross_attention_layers: tuple[int, ...] = ()
    """Indices of the layers that attend to the image instead of the text (mllama)."""
    vision: VisionArchitecture | None = None

    @property
    def query_size(self) -> int:
        """Width of q: heads * head_dim (not always hidden_size)."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of k (and of v): key-value heads * head_dim."""
        return self.num_key_value_heads * self.head_dim

    @property
    def num_self_attention_layers(self) -> int:
        """Decoder layers that attend to the text."""
        return self.num_hidden_layers - len(self.cross_attention_layers)
