"""Which attention kernel CUDA would take, and the tensors it allocates. Worker process only."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F

aten = torch.ops.aten
FLASH_MAX_HEAD_DIM = 256
FLASH2 = "llamamath_fa2"
"""Name under which `flash_attention_2` is registered with transformers: the package flash-attn needs a GPU even to be imported."""
_HALF = (torch.float16, torch.bfloat16)


class Attention:
    """Stands in for `scaled_dot_product_attention`. `native`: leave the choice to this build (comparisons with a CPU step)."""

    def __init__(self, capability: tuple[int, int], *, native: bool = False) -> None:
        self.capability = capability
        self.native = native
        self.picked: Counter[str] = Counter()

    def choose(self, query: torch.Tensor, mask: torch.Tensor | None, grouped: bool) -> str:
        """`flash`, `efficient` or `math`.

        aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: flash needs sm >= 80, half precision, no mask, head_dim <= 256; the
        memory-efficient kernel takes masks but no grouped queries.
        """
        if mask is None and query.dtype in _HALF and self.capability >= (8, 0) and query.shape[-1] <= FLASH_MAX_HEAD_DIM:
            return "flash"
        return "math" if grouped else "efficient"

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if self.native:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
            )
        kernel = self.choose(query, attn_mask, enable_gqa)
        self.picked[kernel] += 1
        if kernel == "flash":
            out = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)
        elif kernel == "efficient":
            bias = None if attn_mask is None else _bias(attn_mask, query, key)
            needs = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
            out = aten._scaled_dot_product_efficient_attention(query, key, value, bias, needs, dropout_p, is_causal, scale=scale)
        else:
            if enable_gqa:
                groups = query.shape[1] // key.shape[1]
                key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            out = aten._scaled_dot_product_attention_math(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
        return out[0]  # type: ignore[no-any-return]


def _bias(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """attention.cpp convert_boolean_attn_mask (a fresh bias in the query's dtype) and pad_bias (last dimension to a multiple of 16)."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    width = mask.shape[-1]
    if width % 16:
        mask = F.pad(mask, (0, 16 - width % 16))[..., :width]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def flash_backward_workspace(args: tuple[Any, ...], _: Any) -> int:
    """FlashAttention-2's mha_bwd: softmax_d and dq_accum in float32, and dk, dv of every query head where heads are grouped."""
    query, key = args[1], args[2]
    rows, heads, length, dim = query.shape
    padded, padded_dim = -(-length // 128) * 128, -(-dim // 32) * 32
    size = 4 * rows * heads * padded * (1 + padded_dim)
    if heads != key.shape[1]:
        size += 2 * rows * key.shape[2] * heads * dim * query.element_size()
    return int(size)


WORKSPACES = {"aten::_scaled_dot_product_flash_attention_backward": flash_backward_workspace}


def register_flash2(padded: bool) -> None:
    """transformers' flash_attention_2 path: cast, unpad, kernel, pad. The kernel is torch's own flash attention, which is the same code.

    transformers/integrations/flash_attention.py and modeling_flash_attention_utils.py (5.23).
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    def forward(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, dropout: float = 0.0, **_: Any
    ) -> tuple[torch.Tensor, None]:
        states = [state.transpose(1, 2) for state in (query, key, value)]
        if states[0].dtype == torch.float32:
            dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else torch.bfloat16
            states = [state.to(dtype) for state in states]
        rows, length = states[0].shape[:2]
        unpad = attention_mask is not None and length > 1
        if unpad:
            index = torch.empty(rows * length, dtype=torch.int64, device=query.device)
            states = [state.reshape(-1, *state.shape[2:])[index].view(rows, -1, *state.shape[2:]) for state in states]
        heads = [state.transpose(1, 2) for state in states]
        out = aten._scaled_dot_product_flash_attention(*heads, 0.0, length > 1, False, scale=scaling)[0].transpose(1, 2)
        if unpad:
            full = torch.zeros(rows * length, *out.shape[2:], dtype=out.dtype, device=out.device)
            full[index] = out.reshape(-1, *out.shape[2:])
            out = full.view(rows, length, *out.shape[2:])
        return out, None

    AttentionInterface.register(FLASH2, forward)
    AttentionMaskInterface.register(FLASH2, lambda *args, attention_mask=None, **_: attention_mask if padded else None)
