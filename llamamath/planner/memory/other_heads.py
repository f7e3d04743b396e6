"""Losses of other training code, for describing published runs: LitGPT's, torchtune's, and Unsloth's of 2024.

Sources: Lightning-AI/litgpt at 8641822 and 00af8b0d (`utils.py` chunked_cross_entropy, `finetune/lora.py`, `finetune/full.py`), Lightning
2.4 `plugins/precision/half.py`; unslothai/unsloth in September 2024 (`kernels/cross_entropy_loss.py`); pytorch/torchtune at 1814feb17
(`modules/loss/ce_chunked_output_loss.py`, `modules/transformer.py`).
One chunk of logits is the TILE monomial: 128 positions of every row in LitGPT, an eighth of the positions in torchtune.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llamamath.planner.memory import ops
from llamamath.planner.memory.autograd import Value
from llamamath.planner.memory.ledger import LOGITS
from llamamath.planner.memory.polynomial import SCORED, TILE

if TYPE_CHECKING:
    from llamamath.planner.memory.heads import Head


def litgpt_chunked(head: Head, hidden: Value) -> Value:
    """lm_head and loss in chunks; the loop keeps all logits in float32, the graph a log-softmax of each.

    forward: 2 bytes per logit while lm_head runs (a 4-bit one dequantised on top), 2 + 4 when Fabric converts its outputs, 4 + 4 in the
    loss. backward, by descending age: the losses of all chunks (their gradients take the log-softmaxes' place), then all casts, then
    lm_head with 4 + 2 bytes per logit left; at its end the chunks' gradients of the hidden states, and their concatenation.
    """
    g, s, a = head.graph, head.settings, head.architecture
    numel, width = hidden.numel, hidden.width
    logits = head.logits(Value(hidden.buffer, numel, width))
    count = logits.numel
    wide = _logits_in(head, logits, 4)
    del logits
    g.held.append(wide)
    saved = [g.allocate(wide.numel, 4, LOGITS)] + ([hidden] if s.keeps_inputs else [])
    loss = g.allocate(0, 4)
    if not g.needs_grad(hidden):
        return loss

    def backward(grad: Value) -> Sequence[Value | None]:
        chunk = [g.allocate(TILE, 4, LOGITS), g.allocate(TILE, 4, LOGITS)]
        saved.pop(0)
        chunk.clear()
        wide_gradients = g.allocate(count, 4, LOGITS)
        narrowed = g.allocate(TILE, width, LOGITS)
        del wide_gradients, narrowed
        gradients = g.allocate(count, width, LOGITS)
        weight = head.project.dequantized(a.vocab_size * a.hidden_size) if s.quantized_head else None
        del weight
        parts = g.allocate(numel, width)
        saved.clear()
        del gradients
        joined = g.allocate(numel, width)
        del parts
        return (joined,)

    return g.attach(loss, (hidden,), backward)


def litgpt_full(head: Head, hidden: Value) -> Value:
    """Whole float32 logits (4, kept by the loop), a contiguous shifted copy while the loss runs (4), the chunks' log-softmaxes (4).

    backward: the logits, the chunks' gradients (each takes its log-softmax's place) and their concatenation: 12.
    """
    g = head.graph
    wide = _logits_in(head, head.logits(hidden), 4)
    g.held.append(wide)
    shifted = head.shift(wide)
    saved = [g.allocate(shifted.numel, 4, LOGITS)]
    loss = g.allocate(0, 4)
    if not g.needs_grad(shifted):
        return loss

    def backward(grad: Value) -> Sequence[Value | None]:
        chunk = [g.allocate(TILE, 4, LOGITS), g.allocate(TILE, 4, LOGITS)]
        saved.clear()
        parts = g.allocate(SCORED * head.architecture.vocab_size, 4, LOGITS)
        chunk.clear()
        joined = g.allocate(SCORED * head.architecture.vocab_size, 4, LOGITS)
        del parts
        return (joined,)

    return g.attach(loss, (shifted,), backward)


def unsloth_full(head: Head, hidden: Value) -> Value:
    """Whole logits in the model's dtype: the fused loss overwrites them with their gradient. Labels are shifted, not logits.

    Under autocast accelerate copies the outputs to float32 when the forward returns.
    """
    g = head.graph
    logits = head.logits(hidden)
    converted = g.allocate(logits.numel, 4, LOGITS) if head.settings.autocast else None
    del converted
    return head.in_place_loss(logits)


def torchtune_full(head: Head, hidden: Value) -> Value:
    """`output(h).float()`: the model-dtype logits go at once; log-softmax and its gradients in float32."""
    logits = _logits_in(head, head.logits(hidden), 4)
    return head.nll(head.log_softmax(logits))


def torchtune_chunked(head: Head, hidden: Value) -> Value:
    """Eight chunks of model-dtype logits (2), each made float32 for a moment and its log-softmax kept (4)."""
    g = head.graph
    logits = head.logits(hidden)
    upcast = g.allocate(TILE, 4, LOGITS)
    saved = [g.allocate(logits.numel, 4, LOGITS)]
    del upcast
    numel, width = logits.numel, logits.width

    def backward(grad: Value) -> Sequence[Value | None]:
        chunk = [g.allocate(TILE, 4, LOGITS), g.allocate(TILE, 4, LOGITS)]
        saved.clear()
        result = g.allocate(numel, width, LOGITS)
        chunk.clear()
        return (result,)

    return g.attach(g.allocate(0, 4), (logits,), backward)


def torchtune_compiled(head: Head, hidden: Value) -> Value:
    """The same, compiled: the fused loss saves its model-dtype input, and each chunk's gradient replaces a chunk."""
    g = head.graph
    logits = head.logits(hidden)
    numel, width = logits.numel, logits.width
    saved = [logits]

    def backward(grad: Value) -> Sequence[Value | None]:
        chunk = g.allocate(TILE, width, LOGITS)
        whole = saved.pop()
        del chunk
        return (Value(whole.buffer, numel, width),)

    return g.attach(g.allocate(0, 4), (logits,), backward)


def _logits_in(head: Head, logits: Value, width: int) -> Value:
    """`logits` in another width, counted as logits."""
    wide = ops.cast(head.graph, logits, width)
    if wide.buffer is not None:
        wide.buffer.relabel(LOGITS)
    return wide


LOSSES: dict[str, Callable[[Head, Value], Value]] = {
    "litgpt_chunked": litgpt_chunked,
    "litgpt_full": litgpt_full,
    "unsloth_full": unsloth_full,
    "torchtune_full": torchtune_full,
    "torchtune_chunked": torchtune_chunked,
    "torchtune_compiled": torchtune_compiled,
}
"""By LogitsPath value."""
