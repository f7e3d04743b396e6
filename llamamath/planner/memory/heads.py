"""From the last hidden state to the loss: TRL's chunked log-probabilities, transformers' full logits of three generations, Liger.

Sources: trl 1.16 `kernels/chunked_logprob.py` and `trainer/utils.py` (add_fused_lm_head); transformers 5.23 `loss/loss_utils.py`;
transformers 4.48 and 4.45 `modeling_llama.py`; liger-kernel `fused_linear_cross_entropy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamamath.planner.architecture import Architecture
from llamamath.planner.memory import ops, other_heads
from llamamath.planner.memory.autograd import Graph, Value
from llamamath.planner.memory.ledger import LOGITS
from llamamath.planner.memory.polynomial import SCORED, TILE, TOKENS
from llamamath.planner.memory.projections import Projections
from llamamath.planner.memory.settings import Settings

CHUNK = 32768
"""Vocabulary width of a tile, trl 1.16 `_CHUNKED_LOGPROB_CHUNK_SIZE`."""


@dataclass(frozen=True, slots=True)
class Head:
    """The output projection: its weight, how it is stored, and the loss above it."""

    graph: Graph
    architecture: Architecture
    settings: Settings
    project: Projections
    weight: Value

    def loss(self, hidden: Value) -> Value:
        """The loss of `hidden` [tokens, hidden_size] by the settings' loss kind; a Value whose node starts the backward."""
        loss = self.settings.loss
        if loss == "trl_chunked":
            return self._chunked(hidden)
        if loss == "liger":
            return self._liger(hidden)
        if loss in other_heads.LOSSES:
            return other_heads.LOSSES[loss](self, hidden)
        return self._full(hidden)

    def _chunked(self, hidden: Value) -> Value:
        g, s, a = self.graph, self.settings, self.architecture
        h = a.hidden_size
        mask = g.allocate(TOKENS, 1)
        indices = g.allocate(SCORED, 16)
        scored = g.allocate(SCORED * h, hidden.width)
        if g.needs_grad(hidden):
            g.save()
            tokens, width = hidden.numel, hidden.width
            kept = [indices]

            def scatter(grad: Value) -> Sequence[Value | None]:
                dense = g.allocate(tokens, width)  # index_put into zeros
                whole = g.allocate(tokens, width)  # slice_backward of [:, :-1]
                kept.clear()
                del dense
                return (whole,)

            g.attach(scored, (hidden,), scatter)
        del indices
        per_token = self._log_probs(scored)
        del scored, mask
        log_probs = g.allocate(TOKENS, 4)
        entropy = g.allocate(TOKENS, 4)
        extra = g.allocate(TOKENS, 1)
        kept_by_loss = [g.allocate(SCORED, 4) for _ in range(8)] if s.method == "grpo" else [g.allocate(TOKENS, 4)]
        out = g.allocate(0, 4)
        if per_token.node is not None:
            held = [log_probs, *kept_by_loss]

            def reduce(grad: Value) -> Sequence[Value | None]:
                result = g.allocate(SCORED, 4)
                held.clear()
                return (result,)

            g.attach(out, (per_token,), reduce)
        del entropy, extra
        return out

    def _log_probs(self, scored: Value) -> Value:
        """ChunkedLogProbFunction: one logits tile, fp32 statistics; backward a fp32 gradient of the hidden states beside the tile."""
        g, s = self.graph, self.settings
        h = self.architecture.hidden_size
        compute = 2 if s.autocast else scored.width
        statistics = g.allocate(SCORED, 4 * 7)
        tile = g.allocate(TILE, compute, LOGITS)
        narrowed = self._narrowed(scored, compute, 1)
        narrowed.clear()
        del tile
        out = g.allocate(SCORED, 4)
        kept = [scored, g.allocate(SCORED, 8)]
        del statistics
        if g.needs_grad(scored, self.weight):
            g.save(4)
            weight, trained = self.weight, self.weight.node is not None
            width = scored.width
            kept_scored = scored

            def backward(grad: Value) -> Sequence[Value | None]:
                wide = g.allocate(SCORED * h, 4)
                wide_weight = g.allocate(weight.numel, 4) if trained else None
                held = [g.allocate(TILE, compute, LOGITS)]
                held += self._narrowed(kept_scored, compute, 2)
                for_hidden = g.allocate(SCORED * h, width) if width != 4 else wide
                for_weight = wide_weight
                if wide_weight is not None and weight.width != 4:
                    for_weight = g.allocate(weight.numel, weight.width)
                held.clear()
                kept.clear()
                return (for_hidden, for_weight)

            g.attach(out, (scored, self.weight), backward)
        return out

    def _narrowed(self, scored: Value, compute: int, copies: int) -> list[Value]:
        """Casts of one chunk of the weight and of the hidden states, where they are stored wider than they are multiplied.

        The backward's loop holds the last chunk's cast while it makes the next: two copies where the vocabulary has several chunks.
        """
        g, h = self.graph, self.architecture.hidden_size
        casts = []
        if self.weight.width != compute:
            numel = min(self.weight.numel, CHUNK * h)
            casts += [ops.temporary(g, numel, compute) for _ in range(copies if self.weight.numel > numel else 1)]
        if scored.width != compute:
            casts.append(ops.temporary(g, SCORED * h, compute))
        return casts

    def logits(self, hidden: Value) -> Value:
        """`lm_head(hidden)` with the family's scaling; counted as logits."""
        g, a = self.graph, self.architecture
        if self.settings.quantized_head:
            logits = self.project.linear4bit(hidden, TOKENS, a.hidden_size, a.vocab_size)
        else:
            logits = self.project.linear(hidden, TOKENS * a.vocab_size, self.weight)
        _relabel(logits)
        if a.logits_scaling is not None:
            logits = _relabel(ops.scale(g, logits))
        if a.final_logit_softcapping is not None:
            logits = _relabel(ops.scale(g, logits))
            logits = _relabel(ops.saves_output(g, logits))
            logits = _relabel(ops.scale(g, logits))
        return logits

    def _full(self, hidden: Value) -> Value:
        """A loss over whole logits, and under autocast the float32 copy of a model's outputs (accelerate's convert_outputs_to_fp32)."""
        g, s = self.graph, self.settings
        logits = self.logits(hidden)
        if self.architecture.family == "qwen":
            loss = self._cross_entropy_in_model_dtype(logits)
        else:
            if s.loss == "hf445_full":
                logits = _relabel(ops.cast(g, logits, 4))
            loss = self._cross_entropy(logits)
        converted = g.allocate(logits.numel, 4, LOGITS) if s.autocast and logits.width != 4 else None
        del logits, converted
        return loss

    def _cross_entropy(self, logits: Value) -> Value:
        """`.float()`, the shift (a contiguous copy before transformers 5), log_softmax, nll_loss."""
        g, s = self.graph, self.settings
        wide = _relabel(ops.cast(g, logits, 4))
        del logits
        shifted = wide if s.loss == "hf5_full" else self.shift(wide)
        log_probs = shifted if s.fused else self.log_softmax(shifted)
        out = self.in_place_loss(log_probs) if s.fused else self.nll(log_probs)
        del wide, shifted, log_probs
        return out

    def _cross_entropy_in_model_dtype(self, logits: Value) -> Value:
        """Qwen 1: no `.float()`. `cross_entropy` takes the log-softmax in its input's dtype; autocast gives nll_loss a float32 copy of it.

        Sources: Qwen/Qwen-7B modeling_qwen.py; torch `ATen/native/LossNLL.cpp` (log_softmax with its input's dtype), `autocast_mode.h`.
        """
        g, s = self.graph, self.settings
        shifted = self.shift(logits)
        log_probs = self.log_softmax(shifted)
        del shifted
        wide = _relabel(ops.cast(g, log_probs, 4)) if s.autocast else log_probs
        del log_probs
        out = self.nll(wide, saves_input=True)
        return out

    def nll(self, log_probs: Value, *, saves_input: bool = False) -> Value:
        """`nll_loss`: saves its input, which log_softmax holds as well unless it was cast; backward makes a whole gradient."""
        g = self.graph
        out = g.allocate(0, 4)
        if g.needs_grad(log_probs):
            numel, width = log_probs.numel, log_probs.width
            saved = [log_probs] if saves_input else []

            def backward(grad: Value) -> Sequence[Value | None]:
                result = g.allocate(numel, width, LOGITS)
                saved.clear()
                return (result,)

            g.attach(out, (log_probs,), backward)
        return out

    def in_place_loss(self, logits: Value) -> Value:
        """A fused cross entropy whose gradient overwrites the logits."""
        g = self.graph
        out = g.allocate(0, 4)
        if g.needs_grad(logits):
            kept = [logits]
            owner = Value(logits.buffer, logits.numel, logits.width)

            def in_place(grad: Value) -> Sequence[Value | None]:
                kept.clear()
                return (owner,)

            g.attach(out, (logits,), in_place)
        return out

    def shift(self, logits: Value) -> Value:
        """`logits[..., :-1, :].contiguous()`: a copy, but a view with one row; backward writes into zeros of the whole."""
        g = self.graph
        numel = SCORED * self.architecture.vocab_size
        if self.settings.single_row:
            return ops.narrow(g, logits, numel)
        out = g.allocate(numel, logits.width, LOGITS)
        if g.needs_grad(logits):
            whole, width = logits.numel, logits.width
            g.attach(out, (logits,), lambda grad: (g.allocate(whole, width, LOGITS),))
        return out

    def log_softmax(self, x: Value) -> Value:
        """Saves its output."""
        g = self.graph
        out = g.allocate(x.numel, x.width, LOGITS)
        if g.needs_grad(x):
            saved = [Value(out.buffer, out.numel, x.width)]
            numel, width = x.numel, x.width

            def backward(grad: Value) -> Sequence[Value | None]:
                result = g.allocate(numel, width, LOGITS)
                saved.clear()
                return (result,)

            g.attach(out, (x,), backward)
        return out

    def _liger(self, hidden: Value) -> Value:
        """Fused linear cross entropy: gradients made in the forward, one chunk of logits at a time; the TILE monomial is that chunk."""
        g, weight = self.graph, self.weight
        hidden = ops.cast(g, hidden, 2)
        gradient = g.allocate(hidden.numel, hidden.width)
        trained = weight.node is not None
        for_weight = g.allocate(weight.numel, weight.width) if trained else None
        chunk = [g.allocate(TILE, 2, LOGITS), g.allocate(TILE, 4, LOGITS)]
        chunk.clear()
        out = g.allocate(0, 4)
        if g.needs_grad(hidden, weight):
            kept = [gradient, for_weight]

            def backward(grad: Value) -> Sequence[Value | None]:
                results = list(kept)
                kept.clear()
                return results

            g.attach(out, (hidden, weight), backward)
        return out


def _relabel(value: Value) -> Value:
    if value.buffer is not None:
        value.buffer.relabel(LOGITS)
    return value
