"""Models of old published runs whose code is not transformers' own: Qwen 1. For comparisons only.

They are not profiles: nothing can be planned or trained under these names here.
"""

from __future__ import annotations

import re

from llamamath.planner.architecture import Architecture

_QWEN1 = {  # size: (hidden, half of the published intermediate_size, layers, heads, vocabulary, published parameter count)
    "1_8b": (2048, 5504, 24, 16, 151936, 1_836_828_672),
    "7b": (4096, 11008, 32, 32, 151936, 7_721_324_544),
    "14b": (5120, 13696, 40, 40, 152064, 14_167_290_880),
    "72b": (8192, 24576, 80, 64, 152064, 72_287_920_128),
}
"""config.json of huggingface.co/Qwen/Qwen-1_8B, -7B, -14B and -72B (read 2026-11-21). Their `intermediate_size` counts w1 and w2 together;
c_attn is the fused q, k, v with biases, and nothing else has one (`parameters.py`)."""

_QWEN1_MODULES = {
    "q_proj": "c_attn", "k_proj": "c_attn", "v_proj": "c_attn", "o_proj": "c_proj",
    "up_proj": "w1", "gate_proj": "w2", "down_proj": "c_proj",
}  # fmt: skip


def own_architecture(name: str) -> Architecture | None:
    """A model with code of its own, or None: Qwen 1 (`Qwen/Qwen-7B-Chat`)."""
    match = re.fullmatch(r"qwen/qwen-(\d+(?:_\d)?b)(-chat)?", name.strip().lower())
    sizes = _QWEN1.get(match.group(1)) if match else None
    if sizes is None:
        return None
    hidden, intermediate, layers, heads, vocabulary, _ = sizes
    return Architecture(
        family="qwen",
        name=name,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        tie_word_embeddings=False,
        max_position_embeddings=8192,
    )


def own_modules(architecture: Architecture, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """LoRA targets in the model's own names; transformers' models already have them."""
    if architecture.family != "qwen" or isinstance(targets, str):
        return targets
    return tuple(dict.fromkeys(_QWEN1_MODULES.get(name, name) for name in targets))


def published_parameters(name: str) -> int | None:
    """The published parameter count of such a model, for the test that the shapes add up."""
    match = re.fullmatch(r"qwen/qwen-(\d+(?:_\d)?b)(-chat)?", name.strip().lower())
    sizes = _QWEN1.get(match.group(1)) if match else None
    return None if sizes is None else sizes[5]
