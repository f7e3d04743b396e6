"""Attention kernels: what each saves and the workspaces of its backward.

Sources: torch 2.13 `aten/src/ATen/native/transformers/cuda/attention*.cu` and `flash_attn/flash_api.cpp`; transformers 5.23
`integrations/sdpa_attention.py`, `modeling_flash_attention_utils.py` and each model's `eager_attention_forward`.
Unit of `rows` is query vectors (batch * length); `heads * head_dim` is the query width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamamath.planner.memory import ops
from llamamath.planner.memory.autograd import Graph, Value
from llamamath.planner.memory.polynomial import BIAS, FLASH_TOKENS, MASK, TOKENS, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The shape of one attention: counts of heads, their width, and the sizes of its score matrices."""

    heads: int
    key_value_heads: int
    head_dim: int
    rows: Size = TOKENS
    key_rows: Size = TOKENS
    flash_rows: Size = FLASH_TOKENS
    scores: Size = MASK
    """Elements of one head's score matrices over the whole batch."""
    bias: Size = BIAS
    """Elements of the additive bias, its last dimension padded to 16."""
    softcap: bool = False
    shared_bias: bool = False
    """The mask comes as an additive bias of the right shape already, one for all layers."""

    @property
    def query(self) -> Size:
        """Elements of q (and of the output)."""
        return self.rows * (self.heads * self.head_dim)

    @property
    def repeated(self) -> Size:
        """Elements of k or v repeated to all query heads."""
        return self.key_rows * (self.heads * self.head_dim)


def attend(g: Graph, kernel: str, shape: Heads, q: Value, k: Value, v: Value, *, autocast: bool) -> Value:
    """Attention output for `q`, `k`, `v` by the named kernel (Settings.attention); autocast makes fp32 operands 2-byte."""
    width = 2 if autocast else q.width
    if kernel == "flash":
        return _flash(g, shape, ops.cast(g, q, width), ops.cast(g, k, width), ops.cast(g, v, width))
    if kernel == "flash_varlen":
        return _flash_varlen(g, shape, ops.cast(g, q, width), ops.cast(g, k, width), ops.cast(g, v, width))
    if kernel == "efficient":
        return _efficient(g, shape, q, k, v, width)
    return _eager(g, shape, q, k, v, width)


def _flash(g: Graph, shape: Heads, q: Value, k: Value, v: Value) -> Value:
    """FlashAttention-2: saves q, k, v, the output and one fp32 log-sum-exp per row and head.

    Backward: dq, dk, dv; fp32 `softmax_d` and `dq_accum` over rows rounded to 128; with grouped queries dk and dv for every query head.
    """
    out = g.allocate(q.numel, q.width)
    lse = g.allocate(shape.rows * shape.heads, 4)
    if g.needs_grad(q, k, v):
        g.save(5)
        saved = [q, k, v, Value(out.buffer, out.numel, out.width), lse]
        sizes = (q.numel, k.numel, v.numel)
        width = q.width
        grouped = shape.heads != shape.key_value_heads
        padded_dim = -(-shape.head_dim // 32) * 32

        def backward(grad: Value) -> Sequence[Value | None]:
            workspace = [
                ops.temporary(g, shape.flash_rows * shape.heads, 4),
                ops.temporary(g, shape.flash_rows * (shape.heads * padded_dim), 4),
            ]
            gradients = [g.allocate(size, width) for size in sizes]
            if grouped:
                workspace += [ops.temporary(g, shape.repeated, width), ops.temporary(g, shape.repeated, width)]
            workspace.clear()
            saved.clear()
            return gradients

        g.attach(out, (q, k, v), backward)
    return out


def _flash_varlen(g: Graph, shape: Heads, q: Value, k: Value, v: Value) -> Value:
    """flash_attention_2 with a padding mask: q, k and v are gathered to the unpadded tokens and the output is scattered back."""
    gathered = [_copy(g, value) for value in (q, k, v)]
    del q, k, v
    packed = _flash(g, shape, *gathered)
    gathered.clear()
    return _copy(g, packed)


def _copy(g: Graph, x: Value) -> Value:
    """An index gather or scatter of all rows: a new tensor forward, a new gradient backward."""
    return ops.scale(g, x)


def _efficient(g: Graph, shape: Heads, q: Value, k: Value, v: Value, width: int) -> Value:
    """Memory-efficient attention with a mask: k and v repeated to all heads, the mask made an additive bias in q's dtype.

    Saves q, the repeated k and v, the bias, the output and the log-sum-exp. Backward: dq, dk, dv and one fp32 `delta` per row and head.
    """
    if shape.heads != shape.key_value_heads:
        k = repeat(g, k, shape)
        v = repeat(g, v, shape)
    q, k, v = ops.cast(g, q, width), ops.cast(g, k, width), ops.cast(g, v, width)
    bias = Value(None, shape.bias, width)
    if not shape.shared_bias:
        unpadded = g.allocate(shape.scores, width)
        bias = g.allocate(shape.bias, width)
        del unpadded
    out = g.allocate(q.numel, width)
    lse = g.allocate(shape.rows * shape.heads, 4)
    if g.needs_grad(q, k, v):
        g.save(6)
        saved = [q, k, v, bias, Value(out.buffer, out.numel, out.width), lse]
        sizes = (q.numel, k.numel, v.numel)

        def backward(grad: Value) -> Sequence[Value | None]:
            delta = ops.temporary(g, shape.rows * shape.heads, 4)
            gradients = [g.allocate(size, width) for size in sizes]
            del delta
            saved.clear()
            return gradients

        g.attach(out, (q, k, v), backward)
    return out


def repeat(g: Graph, x: Value, shape: Heads) -> Value:
    """`repeat_kv`: expand and copy to all query heads; backward sums the copies."""
    out = g.allocate(shape.repeated, x.width)
    return ops.keep_for(g, out, x) if g.needs_grad(x) else out


def _eager(g: Graph, shape: Heads, q: Value, k: Value, v: Value, width: int) -> Value:
    """transformers' eager attention: scores in the compute dtype, masked, softmax in fp32, cast back."""
    if shape.heads != shape.key_value_heads:
        k = repeat(g, k, shape)
        v = repeat(g, v, shape)
    else:
        v = ops.clone(g, v)  # bmm wants it contiguous by heads
    elements = shape.scores * shape.heads
    scores = _matmul(g, ops.cast(g, q, width), ops.cast(g, k, width), elements)
    del q, k
    scores = ops.scale(g, scores)
    if shape.softcap:
        scores = ops.scale(g, scores)
        scores = ops.saves_output(g, scores)
        scores = ops.scale(g, scores)
    scores = ops.clone(g, scores)  # + mask
    weights = _softmax(g, ops.cast(g, scores, 4))  # only fp16 has a kernel that widens on the way
    del scores
    weights = ops.cast(g, weights, width)
    out = _matmul(g, weights, ops.cast(g, v, width), shape.query)
    del weights, v
    return ops.clone(g, out)  # transpose(1, 2).contiguous()


def _matmul(g: Graph, a: Value, b: Value, numel: Size) -> Value:
    """Batched matmul of two activations: each is saved for the other."""
    out = g.allocate(numel, max(a.width, b.width))
    if g.needs_grad(a, b):
        g.save(2)
        saved = [a, b]
        sizes = ((a.numel, a.width), (b.numel, b.width))

        def backward(grad: Value) -> Sequence[Value | None]:
            gradients = [g.allocate(size, width) for size, width in sizes]
            saved.clear()
            return gradients

        g.attach(out, (a, b), backward)
    return out


def _softmax(g: Graph, x: Value) -> Value:
    """softmax in fp32: saves its output."""
    return ops.saves_output(g, x)
