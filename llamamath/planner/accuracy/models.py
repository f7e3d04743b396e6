"""Models of old published runs whose code is not transformers' own, as the family whose layer has the same shape. For comparisons only.

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
c_attn is the fused q, k, v with biases, and nothing else has one: with these sizes the shapes of Qwen2 add up to the published counts."""


def equivalent_architecture(name: str) -> Architecture | None:
    """The stand-in for a model with code of its own, or None: Qwen 1 (`Qwen/Qwen-7B-Chat`) as the Qwen2 of that size."""
    match = re.fullmatch(r"qwen/qwen-(\d+(?:_\d)?b)(-chat)?", name.strip().lower())
    sizes = _QWEN1.get(match.group(1)) if match else None
    if sizes is None:
        return None
    hidden, intermediate, layers, heads, vocabulary, _ = sizes
    return Architecture(
        family="qwen2",
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
        attention_bias=True,
    )


def published_parameters(name: str) -> int | None:
    """The published parameter count of a stand-in's original, for the test that the shapes add up."""
    match = re.fullmatch(r"qwen/qwen-(\d+(?:_\d)?b)(-chat)?", name.strip().lower())
    sizes = _QWEN1.get(match.group(1)) if match else None
    return None if sizes is None else sizes[5]
